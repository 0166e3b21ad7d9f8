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
    hull = _outline((-deck, top), (deck, top), (keel, 0.8), (-keel * 0.9, 0.8))
    stripe = _outline((-deck * 0.9, top + 0.1), (deck * 0.93, top + 0.1))
    body = [Part(hull, "main"), Part(stripe, "light", 0.07)]
    if rng.random() < 0.3:
        wide, high = rng.uniform(0.35, 0.55), rng.uniform(0.25, 0.4)
        stacks = np.linspace(-wide * 0.6, wide * 0.6, rng.integers(1, 4))
        funnels = [_box(x - 0.08, top - high - 0.45, x + 0.08, top - high) for x in stacks]
        holes = [_oval(x, top - high / 2, 0.07, 0.07) for x in np.linspace(-wide, wide, 4) * 0.7]
        cabin = [Part(_box(-wide, top - high, wide, top), "light")]
        return (
            [Part(f, "second") for f in funnels] + cabin + [Part(h, "dark") for h in holes] + body
        )
    mast, tall = rng.uniform(-0.2, 0.15), rng.uniform(0.75, 1.0)
    foot = top - rng.uniform(0.08, 0.2)
    sails = [
        Part(
            _outline((mast + 0.06, -tall), (rng.uniform(0.55, 0.9), foot), (mast + 0.06, foot)),
            "second",
        )
    ]
    if rng.random() < 0.7:
        high = -tall * rng.uniform(0.5, 0.9)
        sails.append(
            Part(
                _outline((mast - 0.06, high), (-rng.uniform(0.5, 0.8), foot), (mast - 0.06, foot)),
                "light",
            )
        )
    return [Part(_outline((mast, top), (mast, -tall - 0.05)), "dark", 0.07), *sails, *body]


def car(rng: Generator) -> list[Part]:
    """A body with a cabin, windows and two wheels: saloon, van or pick-up."""
    belt, roof = rng.uniform(-0.15, 0.1), rng.uniform(-0.65, -0.4)
    back, front = rng.uniform(-0.95, -0.6), rng.uniform(0.15, 0.5)
    slope, nose = rng.uniform(0.1, 0.35), rng.uniform(0.02, 0.2)
    if rng.random() < 0.25:
        back = rng.uniform(-0.2, 0.0)
    body = _outline(
        (-1, belt + 0.08),
        (-0.92, belt),
        (0.85, belt + nose),
        (1, belt + nose + 0.1),
        (1, 0.5),
        (-1, 0.5),
    )
    cabin = _outline(
        (back, belt + 0.02),
        (back + slope * 0.6, roof),
        (front - slope, roof),
        (front + 0.1, belt + 0.06),
    )
    middle, inset = (back + front) / 2, slope * 0.5
    panes = [
        _outline(
            (back + inset * 0.5 + 0.1, belt - 0.03),
            (back + inset + 0.1, roof + 0.1),
            (middle - 0.05, roof + 0.1),
            (middle - 0.05, belt - 0.03),
        ),
        _outline(
            (middle + 0.05, belt - 0.03),
            (middle + 0.05, roof + 0.1),
            (front - slope - 0.02, roof + 0.1),
            (front - 0.05, belt - 0.03),
        ),
    ]
    size, axle = rng.uniform(0.2, 0.3), rng.uniform(0.5, 0.65)
    wheels = [Part(_oval(x, 0.5, size, size), "dark") for x in (-axle, axle)]
    hubs = [Part(_oval(x, 0.5, size * 0.45, size * 0.45), "light") for x in (-axle, axle)]
    lamp = Part(_oval(0.93, belt + nose + 0.2, 0.07, 0.08), "second")
    return [
        Part(cabin, "main"),
        Part(body, "main"),
        *(Part(p, "light") for p in panes),
        lamp,
        *wheels,
        *hubs,
    ]


def cup(rng: Generator) -> list[Part]:
    """A tapered cup with a handle, sometimes on a saucer or with a band around it."""
    rim, foot = rng.uniform(0.5, 0.75), rng.uniform(0.3, 0.6)
    top, end, depth = rng.uniform(-0.75, -0.4), rng.uniform(0.5, 0.7), rng.uniform(0.08, 0.18)
    wall = np.vstack(
        [_oval(-0.1, end, foot, depth, 0, np.pi), [(-0.1 - rim, top), (-0.1 + rim, top)]]
    )
    high = (top + end) / 2 + rng.uniform(-0.1, 0.05)
    ring = _oval(
        -0.1 + (rim + foot) / 2, high, rng.uniform(0.25, 0.4), rng.uniform(0.25, 0.38), -1.5, 1.5
    )
    parts = [Part(ring, "main", rng.uniform(0.09, 0.15)), Part(wall, "main")]
    if rng.random() < 0.5:
        y, half = high + 0.05, 0.1 + 0.1 * rng.random()
        band = [
            (-0.1 + side * (rim + (foot - rim) * (h - top) / (end - top)), h)
            for side, h in ((-1, y - half), (1, y - half), (1, y + half), (-1, y + half))
        ]
        parts.append(Part(np.array(band), "second"))
    parts += [
        Part(_oval(-0.1, top, rim, depth), "light"),
        Part(_oval(-0.1, top + 0.03, rim * 0.82, depth * 0.7), "dark"),
    ]
    if rng.random() < 0.4:
        parts.insert(0, Part(_oval(-0.1, end + 0.08, rng.uniform(0.75, 0.95), 0.16), "light"))
    return parts


def fish(rng: Generator) -> list[Part]:
    """A pointed body with tail, fins and an eye, sometimes striped."""
    long, high = rng.uniform(0.6, 0.75), rng.uniform(0.28, 0.55)
    around = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    body = np.column_stack(
        [0.25 + long * np.cos(around), high * np.sin(around) * (0.75 + 0.25 * np.cos(around))]
    )
    tail, fork, spread = 0.3 - long, rng.uniform(0.05, 0.3), rng.uniform(0.3, 0.5)
    fan = _outline((tail, 0), (-0.95, -spread), (-0.95 + fork, 0), (-0.95, spread))
    fin = _outline((0.5, -high * 0.6), (0.1, -high - rng.uniform(0.15, 0.3)), (-0.15, -high * 0.55))
    belly = _outline((0.35, high * 0.6), (0.05, high + rng.uniform(0.08, 0.25)), (0.0, high * 0.6))
    parts = [Part(fan, "second"), Part(fin, "second"), Part(belly, "second"), Part(body, "main")]
    for x in np.linspace(-0.1, 0.3, rng.integers(0, 4)):
        parts.append(Part(_oval(x - 0.15, 0, 0.2, high * 0.75, -0.9, 0.9), "light", 0.07))
    eye = 0.25 + long * 0.6
    return [
        *parts,
        Part(_oval(eye, -high * 0.2, 0.09, 0.09), "light"),
        Part(_oval(eye + 0.02, -high * 0.2, 0.05, 0.05), "dark"),
    ]


def house(rng: Generator) -> list[Part]:
    """Walls under a roof, with a door and windows, sometimes a chimney."""
    half, eaves, ground = rng.uniform(0.55, 0.85), rng.uniform(-0.35, 0.05), rng.uniform(0.7, 0.9)
    ridge, over, flat = (
        rng.uniform(-1.0, -0.75),
        rng.uniform(0.05, 0.2),
        rng.choice([0.0, 0.0, 0.25, 0.45]),
    )
    roof = _outline(
        (-half - over, eaves),
        (-flat * half, ridge),
        (flat * half + 0.01, ridge),
        (half + over, eaves),
    )
    parts = [Part(_box(-half, eaves, half, ground), "main"), Part(roof, "second")]
    if rng.random() < 0.6:
        x = rng.choice([-1, 1]) * half * rng.uniform(0.4, 0.6)
        parts.insert(0, Part(_box(x - 0.09, ridge - 0.02, x + 0.09, eaves), "dark"))
    door, wide = rng.uniform(-0.5, 0.5) * half, rng.uniform(0.1, 0.15)
    parts.append(
        Part(_box(door - wide, ground - rng.uniform(0.4, 0.55), door + wide, ground), "dark")
    )
    size = rng.uniform(0.09, 0.14)
    for x in (-0.65 * half, 0.0, 0.65 * half):
        if abs(x - door) > wide + size + 0.03:
            y = eaves + rng.uniform(0.28, 0.36)
            parts.append(Part(_box(x - size, y - size, x + size, y + size), "light"))
    return parts


def tree(rng: Generator) -> list[Part]:
    """A trunk under a round, cloudy or pointed crown, sometimes with fruit."""
    thick, low = rng.uniform(0.07, 0.16), rng.uniform(-0.05, 0.35)
    trunk = _outline(
        (-thick, low - 0.2), (thick, low - 0.2), (thick * 1.5, 0.95), (-thick * 1.5, 0.95)
    )
    wide = rng.uniform(0.45, 0.8)
    if rng.random() < 0.35:
        tiers = int(rng.integers(2, 5))
        feet, wides = np.linspace(low + 0.2, -0.4, tiers), np.linspace(wide, wide * 0.5, tiers)
        high = max(0.5, 1.35 * (feet[0] - feet[1]))
        crown = [_outline((-w, y), (0, y - high), (w, y)) for y, w in zip(feet, wides, strict=True)]
    elif rng.random() < 0.4:
        crown = [_oval(0, (low - 0.95) / 2, wide, (low + 0.95) / 2)]
    else:
        around = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        bumps = 1 + 0.12 * np.abs(np.sin(around * rng.integers(3, 6) + rng.uniform(0, 3)))
        round_ = np.column_stack([wide * np.cos(around), (low + 0.95) / 2 * np.sin(around)])
        crown = [round_ * bumps[:, None] * 0.95 + (0, (low - 0.95) / 2)]
    parts = [Part(trunk, "dark"), *(Part(c, "main") for c in crown)]
    for turn in np.arange(rng.choice([0, 0, 5, 7])) * 2.4:  # the golden angle spreads fruit
        reach = rng.uniform(0.1, 0.28)
        x, y = reach * np.cos(turn), (low - 0.8) / 2 + reach * np.sin(turn)
        parts.append(Part(_oval(x, y, 0.06, 0.06), "second"))
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
        rib = np.linspace(0, np.pi / 2, 9)
        up, down = (_arc(x, rim, high, rib) for x in (left, right))
        panel = np.vstack([up, np.column_stack(hem), down[::-1]])
        parts.append(Part(panel, "main" if n % 2 == 0 else "second"))
    return parts


SHAPES: dict[str, Callable[[Generator], list[Part]]] = {
    shape.__name__: shape for shape in (boat, car, cup, fish, house, tree, umbrella)
}


def _outline(*corners: tuple[float, float]) -> np.ndarray:
    return np.array(corners, dtype=float)


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return _outline((left, top), (right, top), (right, bottom), (left, bottom))


def _arc(x: float, rim: float, high: float, rib: np.ndarray) -> np.ndarray:
    """A rib of an umbrella, from the top in the middle down to (x, rim)."""
    return np.column_stack([x * np.sin(rib), rim - (rim + high) * np.cos(rib)])


def _oval(
    x: float, y: float, wide: float, high: float, start: float = 0.0, stop: float = 2 * np.pi
) -> np.ndarray:
    """Points on an ellipse of half axes (wide, high), clockwise on the screen from +x."""
    around = np.linspace(start, stop, 24)
    return np.column_stack([x + wide * np.cos(around), y + high * np.sin(around)])
