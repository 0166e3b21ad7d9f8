"""Match the keys of an .npz to the known ones, by common synonyms and despite typing errors."""

import difflib
import re
from collections.abc import Iterable

NEEDED = ("features", "labels", "text_features")
OPTIONAL = (
    *("domains", "class_names", "domain_names", "split"),
    *("logit_scale", "model", "normalised", "dataset"),
)
_CALLED = {  # known key: its synonyms, in lower case without punctuation and a plural's s
    "features": (
        "feat imagefeature imagefeat imgfeature imgfeat visualfeature embedding imageembedding "
        "imageembed imgembedding embed clipfeature x"
    ),
    "labels": "y clas target classid classlabel labelid classindex groundtruth gt imagelabel",
    "text_features": (
        "text textfeat textembedding textembed txtfeature txtfeat classfeature classembedding "
        "promptfeature promptembedding zeroshotweight classifier classweight prototype"
    ),
    "domains": "domainid domainlabel domainindex env environment style site client",
    "class_names": "classe name category labelname categoryname targetname",
    "domain_names": "environmentname envname stylename",
    "split": "partition fold subset splitid",
    "logit_scale": "scale temperature temp tau logscale logitscaleexp",
    "model": "modelname clipmodel backbone encoder arch architecture",
    "normalised": "normalized normalise normalize isnormalised isnormalized l2normalised unit",
    "dataset": "datasetname",
}
_HOW = {
    "logit_scale": " (the multiplier, near 100: exp of CLIP's parameter, 1 / temperature)",
    "class_names": " (text, one a class; class numbers by row are labels)",
}
_ALIKE = 0.84  # of difflib's ratio: one letter of six wrong, missing or swapped


def nearest_key(key: str) -> str | None:
    """The known key that another key probably means; None if it resembles none."""
    bare = _bare(key)
    for known, names in _CALLED.items():
        if bare in (_bare(known), *names.split()):
            return known
    near = difflib.get_close_matches(bare, map(_bare, _CALLED), n=1, cutoff=_ALIKE)
    return next((known for known in _CALLED if near == [_bare(known)]), None)


def misnamed(keys: Iterable[str], ignore: Iterable[str] = ()) -> list[str]:
    """One sentence for each key, not in ignore, that probably means a known one that is missing."""
    there, found = set(keys), []
    for key in sorted(there - {*_CALLED, *ignore}):
        meant = nearest_key(key)
        if meant and meant not in there:
            found.append(f"{key!r} looks like {meant}{_HOW.get(meant, '')}")
    return found


def _bare(key: str) -> str:
    """Without case, punctuation and a plural's s: "Class-Names" equals "classname"."""
    bare = re.sub(r"[\W_]+", "", key.casefold())
    return bare.removesuffix("s") or bare
