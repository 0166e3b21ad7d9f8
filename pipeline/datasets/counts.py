"""How many images the known data sets have, as published: facts to hold a folder against."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Published:
    """One data set as its authors count it, and the spellings people's folders have."""

    title: str  # the folder's usual name
    source: str  # whose counts these are
    spellings: tuple[str, ...]  # of the folder, as `plain` gives them
    class_names: tuple[str, ...]
    rows: Mapping[str, tuple[int, ...]]  # by domain: each count that is right
    counts: Mapping[tuple[str, str], int] = field(default_factory=dict)  # by (domain, class)
    aliases: Mapping[str, str] = field(default_factory=dict)  # plain spelling -> domain
    totals: tuple[int, ...] = ()  # of whole releases known by their total only
    urls: tuple[str, ...] = ()  # one zip, or one for each domain
    hub: str | None = None  # repository of the Hugging Face hub with the images as parquet

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The domains in sorted order."""
        return tuple(sorted(self.rows))


def plain(name: str) -> str:
    """`name` in lower case with letters and digits only: "Real World" -> "realworld"."""
    return re.sub(r"[\W_]+", "", name.casefold())


def _published(
    domains: tuple[str, ...] = (), counts: Mapping[str, list[int]] | None = None, **rest: Any
) -> Published:
    """One entry of published.json; counts  {class: images in each of `domains`}."""
    lists = ("spellings", "class_names", "totals", "urls")
    rest = {name: tuple(value) if name in lists else value for name, value in rest.items()}
    if counts is None:
        rest["rows"] = {domain: tuple(right) for domain, right in rest["rows"].items()}
        return Published(**rest)
    by_domain = list(zip(*counts.values(), strict=True))
    return Published(
        **rest,
        class_names=tuple(sorted(counts)),
        rows={domain: (sum(n),) for domain, n in zip(domains, by_domain, strict=True)},
        counts={
            (domain, name): n
            for name, numbers in counts.items()
            for domain, n in zip(domains, numbers, strict=True)
        },
    )


KNOWN: Mapping[str, Published] = {
    key: _published(**found)
    for key, found in json.loads(
        Path(__file__).with_name("published.json").read_text("utf-8")
    ).items()
}
DOWNLOADS = tuple(key for key, known in KNOWN.items() if known.urls)
"""What `download` fetches."""
