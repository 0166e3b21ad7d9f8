"""The styles of the four domains: a scene as a rendering, painting, cartoon or sketch.

Each function takes a Scene and a random generator and returns an RGB image of half the canvas.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pipeline.datasets.demo.scenes import CANVAS, Layer, Scene

Generator = np.random.Generator
SIDE = CANVAS // 2


def cartoon(scene: Scene, rng: Generator) -> Image.Image:
    """Flat, saturated fills inside thick outlines."""
    image = Image.new("RGB", (CANVAS, CANVAS), _saturate(scene.sky))
    pen = ImageDraw.Draw(image)
    thick = int(rng.integers(4, 8))
    for layer in scene.clutter:
        _fill(pen, layer, _saturate(layer.colour))
        _stroke(pen, layer.points, (70, 70, 80), 2)
    for layer in scene.thing:
        if layer.width:
            _line(pen, layer.points, (20, 18, 24), layer.width + thick)
        _fill(pen, layer, _saturate(layer.colour))
        if not layer.width:
            _stroke(pen, layer.points, (20, 18, 24), thick)
    return image.reduce(2)


def painted(scene: Scene, rng: Generator) -> Image.Image:
    """Brush strokes that follow a slow field of directions, over a coarse canvas."""
    plan = _flat(scene)
    blurred = np.asarray(plan.filter(ImageFilter.GaussianBlur(1)), dtype=np.float32)
    near = np.asarray(_silhouette(scene).filter(ImageFilter.GaussianBlur(4))) > 60
    image = Image.fromarray(blurred.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    waves = rng.uniform(-0.02, 0.02, 4)
    for count, long, wide in ((140, 24, 12), (900, 10, 4), (900, 6, 3)):
        spots = rng.uniform(0, CANVAS - 1, (count, 2))
        if wide < 10:  # fine brushes are used only near the thing
            spots = spots[near[spots[:, 1].astype(int), spots[:, 0].astype(int)]]
        x, y = spots.T
        angle = 6 * np.sin(waves[0] * x + waves[1] * y) + 3 * np.cos(waves[2] * x + waves[3] * y)
        reach = np.column_stack([np.cos(angle), np.sin(angle)]) * long / 2
        colours = blurred[y.astype(int), x.astype(int)] + rng.normal(0, 11, (len(x), 1))
        colours = np.clip(colours + rng.normal(0, 6, colours.shape), 0, 255).astype(np.uint8)
        ends = np.hstack([spots - reach, spots + reach])
        for end, colour in zip(ends.tolist(), colours.tolist(), strict=True):
            pen.line(end, fill=tuple(colour), width=wide)
    pixels = np.asarray(image.reduce(2), dtype=np.float32)
    weave = rng.normal(0, 3, (SIDE, 1, 1)) + rng.normal(0, 3, (1, SIDE, 1))
    return _image(pixels + weave)


def shaded(scene: Scene, rng: Generator) -> Image.Image:
    """A lit relief with a cast shadow, grain, and a background out of focus."""
    behind = Image.new("RGB", (CANVAS, CANVAS), scene.sky)
    pen = ImageDraw.Draw(behind)
    for layer in scene.clutter:
        _fill(pen, layer, layer.colour)
    behind = behind.reduce(2).filter(ImageFilter.GaussianBlur(1.6))
    height = Image.new("L", (CANVAS, CANVAS), 0)
    albedo = Image.new("RGB", (CANVAS, CANVAS), scene.sky)
    relief, paint = ImageDraw.Draw(height), ImageDraw.Draw(albedo)
    for n, layer in enumerate(scene.thing):
        _fill(paint, layer, layer.colour)
        _fill(relief, layer, min(255, 130 + 12 * n))
    mask = _silhouette(scene).reduce(2)
    light = rng.uniform(0, 2 * np.pi)
    bumps = np.asarray(height.reduce(2).filter(ImageFilter.GaussianBlur(3)), dtype=np.float32)
    down, across = np.gradient(bumps)
    lit = 0.92 + (across * np.cos(light) + down * np.sin(light)) * 0.022
    move = (round(5 * np.cos(light)), round(5 * np.sin(light)))
    shadow = ImageChops.offset(mask, *move).filter(ImageFilter.GaussianBlur(3))
    ramp = np.linspace(1.15, 0.75, SIDE)[:, None, None] ** rng.uniform(-1, 1)
    ground = np.asarray(behind, dtype=np.float32) * ramp
    ground *= 1 - 0.5 * np.asarray(shadow, dtype=np.float32)[:, :, None] / 255
    share = np.asarray(mask, dtype=np.float32)[:, :, None] / 255
    thing = np.asarray(albedo.reduce(2), dtype=np.float32) * np.clip(lit, 0.35, 1.5)[:, :, None]
    grain = rng.normal(0, 5, (SIDE // 2, SIDE // 2, 1)).repeat(2, 0).repeat(2, 1)
    return _image(ground * (1 - share) + thing * share + grain)


def sketch(scene: Scene, rng: Generator) -> Image.Image:
    """Thin unsteady pencil lines on paper, with hatching on dark parts."""
    paper = int(rng.integers(225, 250))
    lead = int(rng.integers(30, 90))
    image = Image.new("L", (CANVAS, CANVAS), paper)
    pen = ImageDraw.Draw(image)
    for layer in scene.clutter:
        _stroke(pen, layer.points + rng.normal(0, 1.2, layer.points.shape), lead + 90, 2)
    for layer in scene.thing:
        if layer.width:
            _line(pen, layer.points, lead + 25, max(3, layer.width // 2))
            continue
        pen.polygon(_flatten(layer.points), fill=paper)
        if sum(layer.colour) < 330 and rng.random() < 0.8:
            _hatch(image, layer, lead + 50, int(rng.integers(5, 9)))
        for _ in range(2):
            _stroke(pen, layer.points + rng.normal(0, 1.0, layer.points.shape), lead, 2)
    pixels = np.asarray(image.reduce(2), dtype=np.float32)[:, :, None]
    tint = np.array([1.0, rng.uniform(0.96, 1.0), rng.uniform(0.88, 0.98)])
    return _image((pixels + rng.normal(0, 3, (SIDE, SIDE, 1))) * tint)


STYLES: dict[str, Callable[[Scene, Generator], Image.Image]] = {
    style.__name__: style for style in (cartoon, painted, shaded, sketch)
}


def _flat(scene: Scene) -> Image.Image:
    image = Image.new("RGB", (CANVAS, CANVAS), scene.sky)
    pen = ImageDraw.Draw(image)
    for layer in (*scene.clutter, *scene.thing):
        _fill(pen, layer, layer.colour)
    return image


def _silhouette(scene: Scene) -> Image.Image:
    mask = Image.new("L", (CANVAS, CANVAS), 0)
    pen = ImageDraw.Draw(mask)
    for layer in scene.thing:
        _fill(pen, layer, 255)
    return mask


def _hatch(image: Image.Image, layer: Layer, shade: int, gap: int) -> None:
    mask = Image.new("L", image.size, 0)
    pen = ImageDraw.Draw(mask)
    for start in range(-CANVAS, CANVAS, gap):
        pen.line((start, CANVAS, start + CANVAS, 0), fill=255, width=2)
    inside = Image.new("L", image.size, 0)
    ImageDraw.Draw(inside).polygon(_flatten(layer.points), fill=255)
    image.paste(shade, mask=ImageChops.multiply(mask, inside))


def _fill(pen: ImageDraw.ImageDraw, layer: Layer, colour: tuple | int) -> None:
    if layer.width:
        _line(pen, layer.points, colour, layer.width)
    else:
        pen.polygon(_flatten(layer.points), fill=colour)


def _stroke(pen: ImageDraw.ImageDraw, points: np.ndarray, colour: tuple | int, width: int) -> None:
    _line(pen, np.vstack([points, points[:2]]), colour, width)


def _line(pen: ImageDraw.ImageDraw, points: np.ndarray, colour: tuple | int, width: int) -> None:
    pen.line(_flatten(points), fill=colour, width=width, joint="curve")


def _flatten(points: np.ndarray) -> list[float]:
    return points.ravel().tolist()


def _saturate(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    middle = sum(colour) / 3
    return tuple(int(min(255, max(0, middle + 1.6 * (v - middle) + 10))) for v in colour)


def _image(pixels: np.ndarray) -> Image.Image:
    pixels = np.broadcast_to(pixels, (SIDE, SIDE, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
