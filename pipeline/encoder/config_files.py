"""What a CLIP's tensors do not show: the number of attention heads and the activation."""

import json
import logging
from pathlib import Path
from typing import Any

from pipeline.encoder.pixels import MEAN, STD
from pipeline.encoder.sizes import Sizes
from pipeline.encoder.state_layouts import OPENAI
from pipeline.encoder.towers import HEAD_WIDTH, UNNAMED, Towers
from pipeline.errors import WeightsError

LOG = logging.getLogger(__name__)

# Names of open_clip's and Hugging Face's files. A folder may hold both, for two files of
# weights; they describe one model.
FILES = ("open_clip_config.json", "config.json")
MOST_BYTES = 1 << 20
ACTIVATIONS = {  # as Hugging Face calls them -> as here
    "quick_gelu": "quickgelu",
    "gelu": "gelu",
}
_HUGGING_FACE = {  # defaults of transformers' CLIPVisionConfig, CLIPTextConfig; files may omit them
    "vision_config": {"num_attention_heads": 12, "hidden_act": "quick_gelu"},
    "text_config": {"num_attention_heads": 8, "hidden_act": "quick_gelu"},
}
_SAME = {  # fields of both formats that the tensors' shapes show too -> the field of Sizes
    "vision_config.hidden_size": "image_width",
    "vision_config.num_hidden_layers": "image_layers",
    "vision_config.patch_size": "patch",
    "text_config.hidden_size": "text_width",
    "text_config.num_hidden_layers": "text_layers",
    "text_config.vocab_size": "vocabulary",
    "projection_dim": "width",
    "vision_cfg.width": "image_width",
    "vision_cfg.layers": "image_layers",
    "vision_cfg.patch_size": "patch",
    "text_cfg.width": "text_width",
    "text_cfg.layers": "text_layers",
    "text_cfg.vocab_size": "vocabulary",
    "embed_dim": "width",
}
_EQUATIONS: dict[str, tuple[Any, ...]] = {  # first OpenAI's value; the others are equivalent
    "vision_config.layer_norm_eps": (1e-5,),
    "text_config.layer_norm_eps": (1e-5,),
    "vision_cfg.pool_type": ("tok",),
    "vision_cfg.final_ln_after_pool": (False,),
    "vision_cfg.pos_embed_type": ("learnable",),
    "vision_cfg.norm_kwargs": ({}, {"eps": 1e-5}),
    "vision_cfg.act_kwargs": ({},),
    "text_cfg.pool_type": ("argmax",),
    "text_cfg.no_causal_mask": (False,),
    "text_cfg.final_ln_after_pool": (False,),
    "text_cfg.norm_kwargs": ({}, {"eps": 1e-5}),
    "text_cfg.act_kwargs": ({},),
    "text_cfg.hf_tokenizer_name": ("",),
}
_PREPROCESSING = (  # file, section, fields of the mean and the standard deviation
    ("open_clip_config.json", "preprocess_cfg", ("mean", "std")),
    ("preprocessor_config.json", None, ("image_mean", "image_std")),
)


def choose_towers(path: Path, sizes: Sizes, asked: Towers, layout: str | None) -> Towers:
    """Heads and activation: as asked, else from the config beside the file, else OpenAI's.

    layout  of state_layouts; None: the weights are known to be OpenAI's (or the demo's, which are
            like them). Other weights are assumed to have QuickGELU only in OpenAI's layout,
            with a warning: libraries that write the other layouts have models of both activations.

    Raises WeightsError if the activation is neither given nor known; for heads that do not
    divide the width; without heads, for a width that 64 does not divide; for a config that
    contradicts the weights' shapes or describes another kind of model; and for other heads or
    another activation with OpenAI's own weights.
    """
    if layout is None:
        return _openais(path, sizes, asked)
    config, source = (UNNAMED, None) if None not in asked else _beside(path, sizes)
    known = Towers(*(a if a is not None else c for a, c in zip(asked, config, strict=True)))
    if source:
        said = f"{known.image_heads},{known.text_heads} heads and activation {known.activation}"
        LOG.info(f"{path.name}: {said}, from {source.name} beside it" + _overridden(asked, config))
    if known.activation is None and layout != OPENAI:
        raise WeightsError(
            f"{path}: weights in {layout} layout, with no config.json or open_clip_config.json "
            "beside them; such models have QuickGELU or GELU, which their weights do not show: "
            "pass --activation quickgelu or --activation gelu"
        )
    wide = (sizes.attention_width, sizes.text_width)
    heads = [
        _heads(path, tower, width, given)
        for tower, width, given in zip(("image", "text"), wide, known[:2], strict=True)
    ]
    towers = Towers(heads[0], heads[1], known.activation or "quickgelu")
    if None in known:
        parts = ["QuickGELU"] if known.activation is None else []
        if None in known[:2]:
            parts.append(f"64-wide attention heads ({heads[0]} image, {heads[1]} text)")
        LOG.warning(
            f"{path.name}: assumes {' and '.join(parts)}, as in OpenAI's CLIP; pass "
            "--activation gelu or --heads IMAGE,TEXT if this model differs"
        )
    return towers


def _openais(path: Path, sizes: Sizes, asked: Towers) -> Towers:
    own = Towers(sizes.attention_width // HEAD_WIDTH, sizes.text_width // HEAD_WIDTH, "quickgelu")
    if any(a and a != o for a, o in zip(asked, own, strict=True)):
        raise WeightsError(
            f"{path.name}: has {own.image_heads},{own.text_heads} attention heads and activation "
            f"{own.activation}; --heads and --activation are for files of other models"
        )
    return own


def _overridden(asked: Towers, config: Towers) -> str:
    other = [c for a, c in zip(asked, config, strict=True) if a not in (None, c)]
    return f"; the options replace its {', '.join(map(str, other))}" if other else ""


def _heads(path: Path, tower: str, width: int, given: int | None) -> int:
    if given is None and width % HEAD_WIDTH:
        raise WeightsError(
            f"{path}: its {tower} tower is {width} wide, not a multiple of OpenAI's 64-wide "
            "attention heads, and the weights do not say how many it has; pass --heads IMAGE,TEXT"
        )
    heads = given or width // HEAD_WIDTH
    if heads < 1 or width % heads:
        raise WeightsError(
            f"{path}: its {tower} tower is {width} wide, which is not divisible by {heads} "
            "attention heads"
        )
    return heads


def _beside(path: Path, sizes: Sizes) -> tuple[Towers, Path | None]:
    for file in (path.with_name(name) for name in FILES):
        if not file.is_file():
            continue
        found = _read_object(file)
        found = found.get("model_cfg", found)  # open_clip's files hold preprocessing as well
        if not isinstance(found, dict):
            continue
        for towers in (_hugging_face(found, file), _open_clip(found, file, sizes)):
            if towers:
                _refuse_contradictions(found, file, sizes)
                _refuse_other_equations(found, file)
                return towers, file
    return UNNAMED, None


def _read_object(file: Path) -> dict[str, Any]:
    """The JSON object of a file; an empty one for any other JSON value, not a CLIP's config."""
    try:
        with file.open("rb") as opened:
            found = json.loads(opened.read(MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{file}: cannot be read as JSON ({type(error).__name__}); repair or remove it, or "
            "pass both --heads IMAGE,TEXT and --activation"
        ) from error
    return found if isinstance(found, dict) else {}


def _hugging_face(config: dict[str, Any], file: Path) -> Towers | None:
    towers = [config.get(name) for name in _HUGGING_FACE]
    if not all(isinstance(tower, dict) for tower in towers):
        return None
    image, text = ({**_HUGGING_FACE[n], **config[n]} for n in _HUGGING_FACE)
    if image["hidden_act"] != text["hidden_act"]:
        raise WeightsError(
            f"{file}: its towers have different activations, {image['hidden_act']!r:.40} and "
            f"{text['hidden_act']!r:.40}; such models are not supported"
        )
    return Towers(
        _positive(image["num_attention_heads"], "vision_config.num_attention_heads", file),
        _positive(text["num_attention_heads"], "text_config.num_attention_heads", file),
        _activation(image["hidden_act"], file),
    )


def _open_clip(config: dict[str, Any], file: Path, sizes: Sizes) -> Towers | None:
    """With open_clip's own defaults: 64-wide image heads, 8 text heads, GELU."""
    image, text = config.get("vision_cfg"), config.get("text_cfg")
    if not (isinstance(image, dict) and isinstance(text, dict)):
        return None
    head_width = _positive(image.get("head_width", HEAD_WIDTH), "vision_cfg.head_width", file)
    heads = _positive(text.get("heads", 8), "text_cfg.heads", file)
    if sizes.attention_width % head_width:
        raise WeightsError(
            f"{file}: vision_cfg.head_width is {head_width}, which does not divide the "
            f"width {sizes.attention_width} of the weights beside it"
        )
    quick = config.get("quick_gelu", False) is True
    return Towers(sizes.attention_width // head_width, heads, "quickgelu" if quick else "gelu")


def _activation(name: object, file: Path) -> str:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise WeightsError(
            f"{file}: hidden_act is {name!r:.40}; supported are {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def _positive(value: object, field: str, file: Path) -> int:
    if type(value) is not int or value < 1:
        raise WeightsError(f"{file}: {field} is {value!r:.40}, expected a positive integer")
    return value


def _refuse_other_equations(config: dict[str, Any], file: Path) -> None:
    """Raises WeightsError for a field that makes another model of the same tensors."""
    for field, expected in _EQUATIONS.items():
        tower, name = field.split(".")
        value = config[tower].get(name) if isinstance(config.get(tower), dict) else None
        if value is not None and value not in expected:
            raise WeightsError(
                f"{file}: {field} is {value!r:.60}, where OpenAI's models have {expected[0]!r}; "
                "such models are not supported"
            )


def warn_of_other_preprocessing(path: Path) -> None:
    """Log a warning if files beside the weights describe other preprocessing than OpenAI's."""
    for file, section, names in _PREPROCESSING:
        if not (path.with_name(file)).is_file():
            continue
        found = _read_object(path.with_name(file))
        found = found.get(section, {}) if section else found
        for name, expected in zip(names, (MEAN, STD), strict=True):
            value = found.get(name) if isinstance(found, dict) else None
            if isinstance(value, list) and not _close(value, expected):
                LOG.warning(
                    f"{path.name}: {file} prepares images with {name} {value!r:.60}; this program "
                    f"uses OpenAI's {list(expected)}, so features differ from the model's own"
                )


def _close(value: list[Any], expected: tuple[float, ...]) -> bool:
    numbers = [one for one in value if isinstance(one, int | float)]
    return len(numbers) == len(value) == len(expected) and all(
        abs(a - b) < 1e-4 for a, b in zip(numbers, expected, strict=True)
    )


def _refuse_contradictions(config: dict[str, Any], file: Path, sizes: Sizes) -> None:
    for field, name in _SAME.items():
        value: Any = config
        for word in field.split("."):
            value = value.get(word) if isinstance(value, dict) else None
        value = tuple(value) if isinstance(value, list) else value
        found = getattr(sizes, name)
        if value is not None and found is not None and value != found:
            raise WeightsError(
                f"{file}: {field} is {value!r:.60}, but the weights beside it have {found}; it "
                "belongs to another model: remove it, or move the weights next to their own config"
            )
