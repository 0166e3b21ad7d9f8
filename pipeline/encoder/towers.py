"""What a CLIP's weights leave open about its two encoders: attention heads and activation."""

from typing import Any, NamedTuple

HEAD_WIDTH = 64  # of all of OpenAI's models
ACTIVATIONS = ("quickgelu", "gelu")


class Towers(NamedTuple):
    """Heads and activation of both encoders; None: not named.

    image_heads, text_heads  attention heads; 0: 64 wide, as OpenAI's
    activation               "quickgelu" or "gelu"
    """

    image_heads: int | None = None
    text_heads: int | None = None
    activation: str | None = None


UNNAMED = Towers()
OPENAI = Towers(0, 0, "quickgelu")


def towers_fact(architecture: object) -> dict[str, Any]:
    """{"towers": {...}} of an architecture.describe, as recorded; {} if they are OpenAI's.

    Runs and sites keep it; OpenAI's is left out, so that older records stay the same.
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
    """The towers that `facts` hold from towers_fact. Raises ValueError for invalid values."""
    found = Towers(**facts["towers"]) if "towers" in facts else OPENAI
    heads = all(type(one) is int and one >= 0 for one in found[:2])
    if not heads or found.activation not in ACTIVATIONS:
        raise ValueError(f"attention heads {found[:2]!r:.60}, activation {found.activation!r:.40}")
    return found


def words_of(towers: Towers) -> tuple[str, ...]:
    """The command-line options that name them, for messages and commands to copy."""
    heads = [str(one) for one in towers[:2] if one is not None]
    words = ("--heads", ",".join(heads)) if heads else ()
    return words + (("--activation", towers.activation) if towers.activation else ())
