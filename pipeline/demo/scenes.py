"""What a picture of the built-in data shows, before a domain's hand has drawn it."""

from dataclasses import dataclass

import numpy as np

from pipeline.demo.shapes import SHAPES, Part

CANVAS = 160  # pixels a side while drawing; the finished picture has half
COLOURS = {
    "red": (205, 45, 40),
    "orange": (235, 130, 35),
    "yellow": (240, 205, 60),
    "green": (70, 150, 65),
    "blue": (50, 100, 200),
    "purple": (130, 70, 165),
    "pink": (235, 140, 175),
    "brown": (135, 90, 55),
    "white": (240, 238, 232),
    "grey": (140, 142, 148),
}
# Things have colours of their own more often than not, as they have in the world.
USUAL = {
    "boat": ("white", "brown", "blue", "red"),
    "car": ("red", "blue", "grey", "white"),
    "cup": ("white", "blue", "yellow", "pink"),
    "fish": ("orange", "grey", "yellow", "blue"),
    "house": ("white", "brown", "yellow", "orange"),
    "tree": ("green", "green", "green", "orange"),
    "umbrella": ("purple", "red", "pink", "blue"),
}


@dataclass(frozen=True)
class Layer:
    """A part where it is in the picture."""

    points: np.ndarray  # (k, 2) float64, pixels of the canvas
    colour: tuple[int, int, int]
    width: int  # of a line, in pixels; 0 for a filled outline


@dataclass(frozen=True)
class Scene:
    """One thing before a background, and the words for it."""

    thing: tuple[Layer, ...]
    clutter: tuple[Layer, ...]
    sky: tuple[int, int, int]
    words: dict[str, str]  # thing, colour, background, size, place


def compose(thing: str, rng: np.random.Generator) -> Scene:
    """A scene with the class `thing` in it; every choice comes from `rng`."""
    names = list(COLOURS)
    usual = USUAL[thing]
    main = str(rng.choice(usual) if rng.random() < 0.6 else rng.choice(names))
    second, back = (str(name) for name in rng.choice([n for n in names if n != main], 2, False))
    tones = {
        "main": _vary(COLOURS[main], 22, rng),
        "second": _vary(COLOURS[second], 22, rng),
        "dark": _vary((55, 45, 42), 18, rng),
        "light": _vary((238, 234, 220), 12, rng),
    }
    size = rng.uniform(0.42, 0.9)
    room = 0.95 - 0.75 * size
    centre = rng.uniform(-room, room, 2) * (1, 0.7)
    parts = _place(SHAPES[thing](rng), size, centre, rng)
    layers = tuple(Layer(p.points, tones[p.tone], _pixels(p.width * size)) for p in parts)
    sky = _vary(_mix(COLOURS[back], (225, 225, 225), rng.uniform(0.2, 0.7)), 12, rng)
    words = {
        "thing": thing,
        "colour": main,
        "background": back,
        "size": "small" if size < 0.56 else "large" if size > 0.76 else "",
        "place": "left" if centre[0] < -0.2 else "right" if centre[0] > 0.2 else "middle",
    }
    return Scene(layers, _clutter(rng), sky, words)


def _place(
    parts: list[Part], size: float, centre: np.ndarray, rng: np.random.Generator
) -> list[Part]:
    """The parts mirrored or not, stretched, slanted, turned, and moved into the canvas."""
    turn = np.radians(rng.normal(0, 11))
    flip = rng.choice([-1.0, 1.0])
    stretch = np.array([[flip * rng.uniform(0.8, 1.15), rng.normal(0, 0.1)], [0, 1]])
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ stretch
    half = CANVAS / 2
    return [
        Part(half + half * (size * p.points @ matrix.T + centre), p.tone, p.width) for p in parts
    ]


def _clutter(rng: np.random.Generator) -> tuple[Layer, ...]:
    """The ground, half of the time, and up to five plain shapes that mean nothing."""
    layers = []
    names = list(COLOURS)
    if rng.random() < 0.55:
        left, right = CANVAS * (0.62 + rng.normal(0, 0.08, 2))
        points = np.array([(0, left), (CANVAS, right), (CANVAS, CANVAS), (0, CANVAS)])
        colour = _mix(COLOURS[str(rng.choice(names))], (150, 150, 130), 0.5)
        layers.append(Layer(points, _vary(colour, 15, rng), 0))
    for _ in range(rng.integers(0, 6)):
        corners = rng.choice([3, 4, 5, 16])
        around = np.linspace(0, 2 * np.pi, corners, endpoint=False) + rng.uniform(0, 2 * np.pi)
        reach = rng.uniform(5, 22, 2)
        points = (
            rng.uniform(0, CANVAS, 2) + np.column_stack([np.cos(around), np.sin(around)]) * reach
        )
        colour = _mix(COLOURS[str(rng.choice(names))], (200, 200, 200), 0.3)
        layers.append(Layer(points, _vary(colour, 15, rng), 0))
    return tuple(layers)


def _pixels(width: float) -> int:
    return max(2, round(width * CANVAS / 2)) if width else 0


def _mix(one: tuple, other: tuple, share: float) -> tuple[int, int, int]:
    return tuple(round(a + (b - a) * share) for a, b in zip(one, other, strict=True))


def _vary(colour: tuple, spread: float, rng: np.random.Generator) -> tuple[int, int, int]:
    return tuple(int(v) for v in np.clip(rng.normal(colour, spread), 0, 255))
