"""What a CLIP's weights leave open of its two encoders: attention heads and activation."""

from typing import Any, NamedTuple

HEAD_WIDTH = 64  # of every model of OpenAI's
ACTIVATIONS = ("quickgelu", "gelu")


class Towers(NamedTuple):
    """Of the image and the text encoder; None: not named.

    image_heads, text_heads  attention heads; 0: as many 64-wide ones as there are, as OpenAI's
    activation               "quickgelu" or "gelu"
    """

    image_heads: int | None = None
    text_heads: int | None = None
    activation: str | None = None


UNNAMED = Towers()
OPENAI = Towers(0, 0, "quickgelu")


def towers_fact(architecture: object) -> dict[str, Any]:
    """{"towers": {...}} of a clip_architecture.describe, as recorded; {} where they are OpenAI's.

    Runs and sites keep it: what is as OpenAI's is left out, so that their records stay as before.
    """

    def part(found: object, name: str) -> Any:
        return found.get(name) if isinstance(found, dict) else None

    found = Towers(
        part(part(architecture, "image"), "heads") or 0,
        part(part(architecture, "text"), "heads") or 0,
        part(architecture, "activation") or OPENAI.activation,
    )
    return {} if found == OPENAI else {"towers": found._asdict()}


def towers_of(facts: dict[str, Any]) -> Towers:
    """The towers that `facts` keep by towers_fact. Raises ValueError for values that cannot be."""
    found = Towers(**facts["towers"]) if "towers" in facts else OPENAI
    heads = all(type(one) is int and one >= 0 for one in found[:2])
    if not heads or found.activation not in ACTIVATIONS:
        raise ValueError(f"attention heads {found[:2]!r:.60}, activation {found.activation!r:.40}")
    return found


def words_of(towers: Towers) -> tuple[str, ...]:
    """The options of a command line that name them, for messages and commands to copy."""
    heads = [str(one) for one in towers[:2] if one is not None]
    words = ("--heads", ",".join(heads)) if heads else ()
    return words + (("--activation", towers.activation) if towers.activation else ())
