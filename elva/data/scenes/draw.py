"""Draw a scene with Pillow: twice the size, then halved, from masks and textures that are made once."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from functools import cache

from PIL import Image, ImageDraw

from elva.data.scenes.world import Scene, Thing

Point = tuple[float, float]

UNITS = 96.0
"""The picture's side in the units of the constants below (pixels at the default size)."""
SUPERSAMPLING = 2
DIAMETER = {"large": {1: 46.0, 2: 43.0, 3: 31.0}, "small": {1: 33.0, 2: 31.0, 3: 24.0}}
"""By number of copies: as large as the cells allow, for a small tower sees shapes only where they fill patches."""
ANGLES = (-10, -5, 0, 5, 10)
ORIENTATIONS = ("horizontal", "vertical", "diagonal")
PERIOD = {"striped": 7.0, "dotted": 7.5, "checkered": 11.0}
FINER = 0.8
"""Small objects carry finer textures, so that enough of each shows."""
TILE = 64.0
INK = {
    "red": ((214, 38, 38), (255, 255, 255)),
    "blue": ((36, 74, 204), (255, 255, 255)),
    "green": ((18, 120, 52), (255, 255, 255)),
    "yellow": ((250, 214, 30), (150, 104, 0)),
    "purple": ((122, 38, 160), (255, 255, 255)),
    "orange": ((245, 130, 20), (255, 255, 255)),
    "pink": ((244, 112, 178), (255, 255, 255)),
    "black": ((24, 24, 26), (255, 255, 255)),
}
"""Each colour, and the tone that its stripes, dots and checks tend to."""
CONTRAST = 0.65
"""How far they go there: patterns stronger than the outlines hide the shapes from a small tower."""
GROUND_INK = {
    "white": (250, 250, 250),
    "grey": (158, 160, 164),
    "sand": (233, 208, 158),
    "sky": (168, 212, 246),
    "grass": (142, 198, 112),
    "night": (34, 38, 84),
}


def draw(scene: Scene, rng: random.Random, image_size: int = 96) -> Image.Image:
    """Draw a scene as an RGB picture of ``image_size`` pixels a side; ``rng`` decides places, angles and phases."""
    side = SUPERSAMPLING * image_size
    scale = side / UNITS
    canvas = _ground(scene.ground, side).crop(_window(rng, side // 2, side))
    outline = (245, 245, 245) if scene.ground == "night" else (30, 30, 30)
    for index, thing in enumerate(scene.things):
        orientation = rng.choice(ORIENTATIONS)
        diameter = _diameter(thing, scale)
        small = thing.size == "small"
        tile = _tile(thing.colour, thing.texture, orientation, scale * (FINER if small else 1.0))
        width = max(2, round((1.0 if small else 1.3) * scale))
        for x, y in _places(scene, index, rng):
            fill, line = _masks(thing.shape, diameter, rng.choice(ANGLES), width)
            corner = (round(x * scale) - diameter // 2 - 2, round(y * scale) - diameter // 2 - 2)
            canvas.paste(tile.crop(_window(rng, tile.width - fill.width, fill.width)), corner, fill)
            canvas.paste(outline, corner, line)
    return canvas.reduce(SUPERSAMPLING)


def _diameter(thing: Thing, scale: float) -> int:
    return round(DIAMETER[thing.size][thing.count] * scale)


def _window(rng: random.Random, slack: int, side: int) -> tuple[int, int, int, int]:
    x, y = rng.randrange(slack + 1), rng.randrange(slack + 1)
    return (x, y, x + side, y + side)


def _places(scene: Scene, index: int, rng: random.Random) -> Iterator[Point]:
    """Centres of an object's copies, in units: in a row along its half of the picture, or in its quarter."""
    column, row = scene.cells[index]
    thing = scene.things[index]
    diameter = DIAMETER[thing.size][thing.count]
    across = min((46 - diameter) / 2, 6)
    if len(scene.things) == 3:
        yield (48 * column + 24 + rng.uniform(-across, across), 48 * row + 24 + rng.uniform(-across, across))
        return
    slot = UNITS / thing.count
    along = min((slot - diameter - 1) / 2, 9 if thing.count == 1 else 5)
    beside = scene.relation in ("left of", "right of")
    for copy in range(thing.count):
        long = (copy + 0.5) * slot + rng.uniform(-along, along)
        short = 48 * (column if beside else row) + 24 + rng.uniform(-across, across)
        yield (short, long) if beside else (long, short)


@cache
def _masks(shape: str, diameter: int, angle: int, width: int) -> tuple[Image.Image, Image.Image]:
    """Interior and outline of a shape, as masks with a border of two pixels."""
    side = diameter + 4
    fill, line = Image.new("L", (side, side)), Image.new("L", (side, side))
    turn = math.radians(angle)
    for level, points in _outlines(shape):
        placed = [_place(point, turn, side / 2, (diameter - width) / 2) for point in points]
        ImageDraw.Draw(fill).polygon(placed, fill=level)
        ImageDraw.Draw(line).line([*placed, *placed[:2]], fill=255, width=width, joint="curve")
    return fill, line


def _place(point: Point, turn: float, centre: float, radius: float) -> Point:
    x, y = point
    cosine, sine = math.cos(turn), math.sin(turn)
    return (centre + radius * (x * cosine - y * sine), centre + radius * (x * sine + y * cosine))


def _outlines(shape: str) -> list[tuple[int, list[Point]]]:
    """(255 = inside, 0 = hole; polygon) in the unit circle, y downwards."""
    if shape == "ring":
        return [(255, _arc(0, 360, 1.0)), (0, _arc(0, 360, 0.36))]
    return [(255, _POLYGONS[shape])]


def _arc(start: float, end: float, radius: float, centre: Point = (0.0, 0.0), steps: int = 40) -> list[Point]:
    angles = (math.radians(start + (end - start) * i / steps) for i in range(steps + 1))
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles]


def _corners(number: int, first: float, radii: tuple[float, ...] = (1.0,)) -> list[Point]:
    angles = (math.radians(first + 360 * i / number) for i in range(number))
    return [
        (radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a))
        for i, a in enumerate(angles)
    ]


def _heart() -> list[Point]:
    angles = [2 * math.pi * i / 48 for i in range(48)]
    return [
        (
            16 * math.sin(a) ** 3 / 16.5,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) + 2.5) / 16.5,
        )
        for a in angles
    ]


def _cross(arm: float = 0.36, reach: float = 0.98) -> list[Point]:
    quarter = [(arm, -reach), (arm, -arm), (reach, -arm), (reach, arm), (arm, arm), (arm, reach)]
    return quarter + [(-x, -y) for x, y in quarter]


_POLYGONS: dict[str, list[Point]] = {
    "circle": _arc(0, 360, 1.0),
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0.0, -1.0), (1.0, 0.82), (-1.0, 0.82)],
    "star": _corners(10, -90, (1.0, 0.54)),
    "heart": _heart(),
    "cross": _cross(),
    "diamond": [(0.0, -1.0), (0.76, 0.0), (0.0, 1.0), (-0.76, 0.0)],
    "crescent": _arc(42, 318, 1.0) + _arc(292, 68, 0.72, (0.477, 0.0)),
    "hexagon": _corners(6, 0),
}


@cache
def _tile(colour: str, texture: str, orientation: str, scale: float) -> Image.Image:
    """A patch of a texture, large enough to crop any object from at any phase."""
    first, towards = INK[colour]
    second = tuple(round(a + CONTRAST * (b - a)) for a, b in zip(first, towards, strict=True))
    side = round(TILE * scale)
    tile = Image.new("RGB", (side, side), first)
    pen = ImageDraw.Draw(tile)
    period = PERIOD.get(texture, 0.0) * scale
    if texture == "striped":
        _stripes(pen, side, period, orientation, second)
    elif texture == "dotted":
        radius = 0.29 * period
        for row in range(int(side / period) + 2):
            for column in range(int(side / period) + 2):
                x, y = (column + 0.5 * (row % 2)) * period, row * period
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=second)
    elif texture == "checkered":
        half = period / 2
        for row in range(int(side / half) + 1):
            for column in range(row % 2, int(side / half) + 1, 2):
                pen.rectangle(
                    (column * half, row * half, (column + 1) * half - 1, (row + 1) * half - 1), fill=second
                )
    return tile


def _stripes(
    pen: ImageDraw.ImageDraw, side: int, period: float, orientation: str, ink: tuple[int, ...]
) -> None:
    width = round(0.45 * period)
    if orientation == "diagonal":
        period, width = period * math.sqrt(2), round(0.45 * period)
        for i in range(int(2 * side / period) + 1):
            pen.line((i * period, 0, i * period - side, side), fill=ink, width=width)
        return
    for i in range(int(side / period) + 1):
        near, far = i * period, i * period + width
        pen.rectangle((0, near, side, far) if orientation == "horizontal" else (near, 0, far, side), fill=ink)


@cache
def _ground(ground: str, side: int) -> Image.Image:
    """A ground half as large again as the picture, to crop from; its marks are the same in every run."""
    rng = random.Random(ground)
    extent = side + side // 2
    unit = side / UNITS
    canvas = Image.new("RGB", (extent, extent), GROUND_INK[ground])
    pen = ImageDraw.Draw(canvas)
    if ground == "sky":
        for _ in range(9):
            x, y = rng.uniform(0, extent), rng.uniform(0, extent)
            for _ in range(4):
                cx, cy, r = (
                    x + rng.uniform(-9, 9) * unit,
                    y + rng.uniform(-2, 2) * unit,
                    rng.uniform(3, 6) * unit,
                )
                pen.ellipse((cx - r, cy - r * 0.7, cx + r, cy + r * 0.7), fill=(220, 238, 252))
        return canvas
    marks = {"sand": (500, (206, 174, 118)), "grass": (420, (96, 160, 72)), "night": (60, (228, 228, 200))}
    number, ink = marks.get(ground, (0, (0, 0, 0)))
    for _ in range(number):
        x, y = rng.uniform(0, extent), rng.uniform(0, extent)
        if ground == "grass":
            pen.line(
                (x, y, x + rng.uniform(-1.2, 1.2) * unit, y - 3.2 * unit),
                fill=ink,
                width=max(1, round(unit / 2)),
            )
        else:
            pen.rectangle((x, y, x + 0.5 * unit, y + 0.5 * unit), fill=ink)
    return canvas
