"""Captions for drawn pictures, as varied as those that people write."""

import numpy as np

# Words for a picture of each domain.
KINDS = {
    "cartoon": ("cartoon", "comic", "cartoon drawing"),
    "painted": ("painting", "oil painting", "painted picture"),
    "shaded": ("rendering", "photo", "shaded picture"),
    "sketch": ("sketch", "pencil drawing", "line drawing"),
}
COLOURLESS = ("sketch",)


def caption(domain: str, words: dict[str, str], rng: np.random.Generator) -> str:
    """One caption of a picture of `domain` that shows `words`; it may leave some of them out."""
    kind = str(rng.choice(KINDS[domain]))
    seen = domain not in COLOURLESS
    size = words["size"] + " " if words["size"] and rng.random() < 0.4 else ""
    colour = words["colour"] + " " if seen and rng.random() < 0.7 else ""
    thing = f"{size}{colour}{words['thing']}"
    behind = f" on a {words['background']} background" if seen and rng.random() < 0.5 else ""
    where = f" in the {words['place']}" if rng.random() < 0.3 else ""
    form = rng.random()
    if form < 0.55:
        return f"a {kind} of a {thing}{where}{behind}"
    if form < 0.7:
        return f"{thing}, {kind}{behind}"
    if form < 0.85:
        return f"a {thing}{where}{behind}"
    return f"a {kind}{behind}"
