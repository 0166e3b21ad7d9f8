"""The seven things of the built-in data as outlines with varying parts.

Each function takes a random generator and returns the parts of one thing, from back to front, in a
frame with x to the right and y downwards where the thing fills about [-1, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Generator = np.random.Generator


@dataclass(frozen=True)
class Part:
    """One filled outline, or a line where `width` is above 0."""

    points: np.ndarray  # (k, 2) float64
    tone: str  # main, second, dark or light: which of the picture's colours it has
    width: float = 0.0


def boat(rng: Generator) -> list[Part]:
    """A hull with one or two sails, or with a cabin and funnels."""
    deck, keel, top = rng.uniform(0.7, 1.0), rng.uniform(0.35, 0.65), rng.uniform(0.15, 0.4)
    hull = _outline("main", (-deck, top), (deck, top), (keel, 0.8), (-keel * 0.9, 0.8))
    stripe = _outline("light", (-deck * 0.9, top + 0.1), (deck * 0.93, top + 0.1), width=0.07)
    if rng.random() < 0.3:
        wide, high = rng.uniform(0.35, 0.55), rng.uniform(0.25, 0.4)
        stacks = np.linspace(-wide * 0.6, wide * 0.6, rng.integers(1, 4))
        funnels = [
            _box("second", x - 0.08, top - high - 0.45, x + 0.08, top - high) for x in stacks
        ]
        cabin = _box("light", -wide, top - high, wide, top)
        windows = np.linspace(-wide, wide, 4) * 0.7
        holes = [_disc("dark", x, top - high / 2, 0.07, 0.07) for x in windows]
        return [*funnels, cabin, *holes, hull, stripe]
    mast, tall = rng.uniform(-0.2, 0.15), rng.uniform(0.75, 1.0)
    foot = top - rng.uniform(0.08, 0.2)
    clew = (rng.uniform(0.55, 0.9), foot)
    sails = [_outline("second", (mast + 0.06, -tall), clew, (mast + 0.06, foot))]
    if rng.random() < 0.7:
        head = (mast - 0.06, -tall * rng.uniform(0.5, 0.9))
        tack = (-rng.uniform(0.5, 0.8), foot)
        sails.append(_outline("light", head, tack, (mast - 0.06, foot)))
    return [_outline("dark", (mast, top), (mast, -tall - 0.05), width=0.07), *sails, hull, stripe]


def car(rng: Generator) -> list[Part]:
    """A body with a cabin, windows and two wheels: saloon, van or pick-up."""
    belt, roof = rng.uniform(-0.15, 0.1), rng.uniform(-0.65, -0.4)
    back, front = rng.uniform(-0.95, -0.6), rng.uniform(0.15, 0.5)
    slope, nose = rng.uniform(0.1, 0.35), rng.uniform(0.02, 0.2)
    if rng.random() < 0.25:
        back = rng.uniform(-0.2, 0.0)
    rear, hood = [(-1, belt + 0.08), (-0.92, belt)], [(0.85, belt + nose), (1, belt + nose + 0.1)]
    body = _outline("main", *rear, *hood, (1, 0.5), (-1, 0.5))
    top = [(back + slope * 0.6, roof), (front - slope, roof)]
    cabin = _outline("main", (back, belt + 0.02), *top, (front + 0.1, belt + 0.06))
    middle, inset, sill, head = (back + front) / 2, slope * 0.5, belt - 0.03, roof + 0.1
    left = [(back + inset * 0.5 + 0.1, sill), (back + inset + 0.1, head)]
    right = [(front - slope - 0.02, head), (front - 0.05, sill)]
    size, axle = rng.uniform(0.2, 0.3), rng.uniform(0.5, 0.65)
    return [
        cabin,
        body,
        _outline("light", *left, (middle - 0.05, head), (middle - 0.05, sill)),
        _outline("light", (middle + 0.05, sill), (middle + 0.05, head), *right),
        _disc("second", 0.93, belt + nose + 0.2, 0.07, 0.08),
        *(_disc("dark", x, 0.5, size, size) for x in (-axle, axle)),
        *(_disc("light", x, 0.5, size * 0.45, size * 0.45) for x in (-axle, axle)),
    ]


def cup(rng: Generator) -> list[Part]:
    """A tapered cup with a handle, sometimes on a saucer or with a band around it."""
    rim, foot = rng.uniform(0.5, 0.75), rng.uniform(0.3, 0.6)
    top, end, depth = rng.uniform(-0.75, -0.4), rng.uniform(0.5, 0.7), rng.uniform(0.08, 0.18)
    sides = [(-0.1 - rim, top), (-0.1 + rim, top)]
    wall = np.vstack([_oval(-0.1, end, foot, depth, 0, np.pi), sides])
    high = (top + end) / 2 + rng.uniform(-0.1, 0.05)
    wide, tall = rng.uniform(0.25, 0.4), rng.uniform(0.25, 0.38)
    ring = _oval(-0.1 + (rim + foot) / 2, high, wide, tall, -1.5, 1.5)
    parts = [Part(ring, "main", rng.uniform(0.09, 0.15)), Part(wall, "main")]
    if rng.random() < 0.5:
        y, half = high + 0.05, 0.1 + 0.1 * rng.random()
        corners = ((-1, y - half), (1, y - half), (1, y + half), (-1, y + half))
        span = end - top
        band = [(-0.1 + s * (rim + (foot - rim) * (h - top) / span), h) for s, h in corners]
        parts.append(_outline("second", *band))
    parts.append(_disc("light", -0.1, top, rim, depth))
    parts.append(_disc("dark", -0.1, top + 0.03, rim * 0.82, depth * 0.7))
    if rng.random() < 0.4:
        parts.insert(0, _disc("light", -0.1, end + 0.08, rng.uniform(0.75, 0.95), 0.16))
    return parts


def fish(rng: Generator) -> list[Part]:
    """A pointed body with tail, fins and an eye, sometimes striped."""
    long, high = rng.uniform(0.6, 0.75), rng.uniform(0.28, 0.55)
    around = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    girth = high * np.sin(around) * (0.75 + 0.25 * np.cos(around))
    body = Part(np.column_stack([0.25 + long * np.cos(around), girth]), "main")
    tail, fork, spread = 0.3 - long, rng.uniform(0.05, 0.3), rng.uniform(0.3, 0.5)
    tips = [(-0.95, -spread), (-0.95 + fork, 0), (-0.95, spread)]
    top, low = (0.1, -high - rng.uniform(0.15, 0.3)), (0.05, high + rng.uniform(0.08, 0.25))
    parts = [
        _outline("second", (tail, 0), *tips),
        _outline("second", (0.5, -high * 0.6), top, (-0.15, -high * 0.55)),
        _outline("second", (0.35, high * 0.6), low, (0.0, high * 0.6)),
        body,
    ]
    for x in np.linspace(-0.1, 0.3, rng.integers(0, 4)):
        parts.append(Part(_oval(x - 0.15, 0, 0.2, high * 0.75, -0.9, 0.9), "light", 0.07))
    eye = 0.25 + long * 0.6
    parts.append(_disc("light", eye, -high * 0.2, 0.09, 0.09))
    return [*parts, _disc("dark", eye + 0.02, -high * 0.2, 0.05, 0.05)]


def house(rng: Generator) -> list[Part]:
    """Walls under a roof, with a door and windows, sometimes a chimney."""
    half, eaves, ground = rng.uniform(0.55, 0.85), rng.uniform(-0.35, 0.05), rng.uniform(0.7, 0.9)
    ridge, over = rng.uniform(-1.0, -0.75), rng.uniform(0.05, 0.2)
    flat = rng.choice([0.0, 0.0, 0.25, 0.45])
    top = [(-flat * half, ridge), (flat * half + 0.01, ridge)]
    roof = _outline("second", (-half - over, eaves), *top, (half + over, eaves))
    parts = [_box("main", -half, eaves, half, ground), roof]
    if rng.random() < 0.6:
        x = rng.choice([-1, 1]) * half * rng.uniform(0.4, 0.6)
        parts.insert(0, _box("dark", x - 0.09, ridge - 0.02, x + 0.09, eaves))
    door, wide = rng.uniform(-0.5, 0.5) * half, rng.uniform(0.1, 0.15)
    parts.append(_box("dark", door - wide, ground - rng.uniform(0.4, 0.55), door + wide, ground))
    size = rng.uniform(0.09, 0.14)
    for x in (-0.65 * half, 0.0, 0.65 * half):
        if abs(x - door) > wide + size + 0.03:
            y = eaves + rng.uniform(0.28, 0.36)
            parts.append(_box("light", x - size, y - size, x + size, y + size))
    return parts


def tree(rng: Generator) -> list[Part]:
    """A trunk under a round, cloudy or pointed crown, sometimes with fruit."""
    thick, low = rng.uniform(0.07, 0.16), rng.uniform(-0.05, 0.35)
    top = [(-thick, low - 0.2), (thick, low - 0.2)]
    parts = [_outline("dark", *top, (thick * 1.5, 0.95), (-thick * 1.5, 0.95))]
    wide = rng.uniform(0.45, 0.8)
    if rng.random() < 0.35:
        tiers = int(rng.integers(2, 5))
        feet, wides = np.linspace(low + 0.2, -0.4, tiers), np.linspace(wide, wide * 0.5, tiers)
        high = max(0.5, 1.35 * (feet[0] - feet[1]))
        for y, w in zip(feet, wides, strict=True):
            parts.append(_outline("main", (-w, y), (0, y - high), (w, y)))
    elif rng.random() < 0.4:
        parts.append(_disc("main", 0, (low - 0.95) / 2, wide, (low + 0.95) / 2))
    else:
        around = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        bumps = 1 + 0.12 * np.abs(np.sin(around * rng.integers(3, 6) + rng.uniform(0, 3)))
        crown = np.column_stack([wide * np.cos(around), (low + 0.95) / 2 * np.sin(around)])
        parts.append(Part(crown * bumps[:, None] * 0.95 + (0, (low - 0.95) / 2), "main"))
    for turn in np.arange(rng.choice([0, 0, 5, 7])) * 2.4:  # the golden angle spreads fruit
        reach = rng.uniform(0.1, 0.28)
        x, y = reach * np.cos(turn), (low - 0.8) / 2 + reach * np.sin(turn)
        parts.append(_disc("second", x, y, 0.06, 0.06))
    return parts


def umbrella(rng: Generator) -> list[Part]:
    """A scalloped dome of coloured panels over a stick with a hook."""
    rim, high = rng.uniform(0.05, 0.25), rng.uniform(0.7, 1.0)
    bottom, hook = rng.uniform(0.65, 0.8), rng.uniform(0.1, 0.17)
    stick = np.vstack([[(0, -high)], _oval(hook, bottom, hook, hook, np.pi, 0)])
    ribs = np.cos(np.linspace(np.pi, 0, int(rng.integers(4, 8)))) * 0.95
    parts = [Part(stick, "dark", 0.08)]
    for n, (left, right) in enumerate(zip(ribs[:-1], ribs[1:], strict=True)):
        hem = np.linspace(left, right, 7), rim - 0.1 * np.sin(np.linspace(0, np.pi, 7))
        rib = np.linspace(0, np.pi / 2, 9)  # each from the top in the middle down to (x, rim)
        down = rim - (rim + high) * np.cos(rib)
        first, last = (np.column_stack([x * np.sin(rib), down]) for x in (left, right))
        panel = np.vstack([first, np.column_stack(hem), last[::-1]])
        parts.append(Part(panel, "main" if n % 2 == 0 else "second"))
    return parts


SHAPES: dict[str, Callable[[Generator], list[Part]]] = {
    shape.__name__: shape for shape in (boat, car, cup, fish, house, tree, umbrella)
}


def _outline(tone: str, *corners: tuple[float, float], width: float = 0.0) -> Part:
    return Part(np.array(corners, dtype=float), tone, width)


def _box(tone: str, left: float, top: float, right: float, bottom: float) -> Part:
    return _outline(tone, (left, top), (right, top), (right, bottom), (left, bottom))


def _disc(tone: str, x: float, y: float, wide: float, high: float) -> Part:
    return Part(_oval(x, y, wide, high), tone)


def _oval(
    x: float, y: float, wide: float, high: float, start: float = 0.0, stop: float = 2 * np.pi
) -> np.ndarray:
    """Points on an ellipse of half axes (wide, high), clockwise on the screen from +x."""
    around = np.linspace(start, stop, 24)
    return np.column_stack([x + wide * np.cos(around), y + high * np.sin(around)])
