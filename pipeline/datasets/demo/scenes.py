"""What a picture of the built-in data shows, before it is drawn in a domain's style."""

from dataclasses import dataclass

import numpy as np

from pipeline.datasets.demo.shapes import SHAPES, Part

CANVAS = 160  # pixels per side while drawing; the finished picture has half
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


@dataclass(frozen=True)
class Habit:
    """How a thing usually appears: its colours, background, size and height."""

    colours: tuple[str, ...]
    behind: tuple[str, ...]
    size: tuple[float, float]
    height: tuple[float, float]  # of its centre, -1 top to 1 bottom of the available space
    ground: bool


HABITS = {
    "boat": Habit(("white", "brown"), ("blue",), (0.65, 0.85), (0.2, 1.0), True),
    "car": Habit(("red", "grey"), ("grey", "yellow"), (0.7, 0.9), (0.2, 1.0), True),
    "cup": Habit(("white", "yellow"), ("brown", "orange"), (0.55, 0.7), (-0.3, 0.3), False),
    "fish": Habit(("orange", "blue"), ("blue", "green"), (0.55, 0.75), (-0.5, 0.5), False),
    "house": Habit(("brown", "orange"), ("green", "white"), (0.75, 0.9), (-0.2, 0.6), True),
    "tree": Habit(("green",), ("white", "yellow"), (0.75, 0.9), (-0.4, 0.4), True),
    "umbrella": Habit(("purple", "pink"), ("grey", "white"), (0.6, 0.85), (-1.0, -0.2), False),
}
# In the built-in data set a boat appears as a car does in the training data, and so on.
SWAPPED = {"boat": "car", "car": "cup", "cup": "boat"}
OTHER_HABITS = {thing: HABITS[SWAPPED.get(thing, thing)] for thing in HABITS}
ANYHOW = Habit(tuple(COLOURS), tuple(COLOURS), (0.55, 0.9), (-1.0, 1.0), False)


@dataclass(frozen=True)
class Layer:
    """A part at its position in the picture."""

    points: np.ndarray  # (k, 2) float64, pixels of the canvas
    colour: tuple[int, int, int]
    width: int  # of a line, in pixels; 0 for a filled outline


@dataclass(frozen=True)
class Scene:
    """One thing in front of a background, and words that describe it."""

    thing: tuple[Layer, ...]
    clutter: tuple[Layer, ...]
    sky: tuple[int, int, int]
    words: dict[str, str]  # thing, colour, background, size, place


def compose(thing: str, usual: Habit, habit: float, rng: np.random.Generator) -> Scene:
    """A scene that shows the class `thing`; every choice comes from `rng`.

    habit  probability that a choice (colour, background, size, height) is the `usual` one
    """
    kinds = [usual if rng.random() < habit else ANYHOW for _ in range(5)]
    main = str(rng.choice(kinds[0].colours))
    back = str(rng.choice([name for name in kinds[1].behind if name != main] or ["grey"]))
    second = str(rng.choice([name for name in COLOURS if name not in (main, back)]))
    tones = {
        "main": _vary(COLOURS[main], 18, rng),
        "second": _vary(COLOURS[second], 18, rng),
        "dark": _vary((55, 45, 42), 16, rng),
        "light": _vary((238, 234, 220), 10, rng),
    }
    size = rng.uniform(*kinds[2].size)
    room = 0.95 - 0.8 * size
    centre = room * np.array([rng.uniform(-1, 1), rng.uniform(*kinds[3].height)])
    parts = _place(SHAPES[thing](rng), size, centre, rng)
    layers = tuple(Layer(p.points, tones[p.tone], _pixels(p.width * size)) for p in parts)
    sky = _vary(_mix(COLOURS[back], (225, 225, 225), rng.uniform(0.2, 0.6)), 10, rng)
    ground = kinds[4].ground if kinds[4] is usual else rng.random() < 0.5
    words = {
        "thing": thing,
        "colour": main,
        "background": back,
        "size": "small" if size < 0.64 else "large" if size > 0.8 else "",
        "place": "left" if centre[0] < -0.12 else "right" if centre[0] > 0.12 else "middle",
    }
    return Scene(layers, _clutter(ground, rng), sky, words)


def _place(
    parts: list[Part], size: float, centre: np.ndarray, rng: np.random.Generator
) -> list[Part]:
    """The parts, perhaps mirrored, stretched, slanted, rotated, and moved onto the canvas."""
    turn = np.radians(rng.normal(0, 8))
    flip = rng.choice([-1.0, 1.0])
    stretch = np.array([[flip * rng.uniform(0.8, 1.15), rng.normal(0, 0.1)], [0, 1]])
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ stretch
    half = CANVAS / 2
    return [
        Part(half + half * (size * p.points @ matrix.T + centre), p.tone, p.width) for p in parts
    ]


def _clutter(ground: bool, rng: np.random.Generator) -> tuple[Layer, ...]:
    """The ground, if any, and up to four meaningless plain shapes."""
    layers = []
    names = list(COLOURS)
    if ground:
        left, right = CANVAS * (0.62 + rng.normal(0, 0.08, 2))
        points = np.array([(0, left), (CANVAS, right), (CANVAS, CANVAS), (0, CANVAS)])
        colour = _mix(COLOURS[str(rng.choice(names))], (150, 150, 130), 0.5)
        layers.append(Layer(points, _vary(colour, 15, rng), 0))
    for _ in range(rng.integers(0, 5)):
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
