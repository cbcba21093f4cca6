"""The scene graph: what the embedded world is made of, and what is true of a scene.

Everything else derives from a `Scene`: its pixels (rendering.py), its captions (language.py), its
answers to claims (parsing.py). A scene does not know its resolution: lengths are fractions of the
image's side, x grows to the right and y downwards, and objects are listed from back to front.
"""

import collections
import dataclasses
import json
import math
from collections.abc import Sequence

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "medium", "large")
TEXTURES = ("solid", "striped", "dotted")
TONES = ("light", "grey", "dark")
PATTERNS = ("plain", "gradient", "cloudy", "grid")
RELATIONS = ("left of", "right of", "above", "below")
MAX_OBJECTS = 6
NUM_CLASSES = len(COLOURS) * len(SHAPES)

# Offsets smaller than this between two centres are no relation at all.
RELATION_MARGIN = 0.12
# The regions of the image, the most specific first: bounds (x0, x1, y0, y1) of an object's centre.
REGIONS = {
    "top left": (0.0, 0.4, 0.0, 0.4),
    "top right": (0.6, 1.0, 0.0, 0.4),
    "bottom left": (0.0, 0.4, 0.6, 1.0),
    "bottom right": (0.6, 1.0, 0.6, 1.0),
    "middle": (0.36, 0.64, 0.36, 0.64),
    "top": (0.0, 1.0, 0.0, 0.4),
    "bottom": (0.0, 1.0, 0.6, 1.0),
    "left": (0.0, 0.4, 0.0, 1.0),
    "right": (0.6, 1.0, 0.0, 1.0),
}

# (colour, shape): what a caption counts.
Kind = tuple[str, str]


def class_index(kind: Kind) -> int:
    """The class of a (colour, shape) among the 64: colour * 8 + shape."""
    return COLOURS.index(kind[0]) * len(SHAPES) + SHAPES.index(kind[1])


def class_kind(index: int) -> Kind:
    """The (colour, shape) of a class index; the inverse of `class_index`."""
    return COLOURS[index // len(SHAPES)], SHAPES[index % len(SHAPES)]


@dataclasses.dataclass(frozen=True)
class Object:
    """One object. `radius`: half of its extent; `angle`, `texture_angle`: radians, clockwise.

    `rgb` is the jittered colour it is painted with, 0 to 255; `texture_phase` shifts its stripes
    or dots by a share of their period.
    """

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[int, int, int]
    texture_angle: float
    texture_phase: float

    @property
    def kind(self) -> Kind:
        return self.colour, self.shape


@dataclasses.dataclass(frozen=True)
class Background:
    """A tone (what captions name), a pattern between two close shades, its direction (radians)."""

    tone: str
    pattern: str
    rgb: tuple[int, int, int]
    rgb_2: tuple[int, int, int]
    angle: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects from back to front on a background. `noise`: standard deviation in 0 to 255 units."""

    objects: tuple[Object, ...]
    background: Background
    noise: float
    noise_seed: int

    @property
    def label(self) -> int:
        """The class of the only object, or -1 when there are several."""
        return class_index(self.objects[0].kind) if len(self.objects) == 1 else -1

    def groups(self) -> dict[Kind, list[Object]]:
        """The objects by kind, the kind that covers most first."""
        groups: dict[Kind, list[Object]] = collections.defaultdict(list)
        for item in self.objects:
            groups[item.kind].append(item)
        area = {kind: sum(o.radius**2 for o in members) for kind, members in groups.items()}
        return {kind: groups[kind] for kind in sorted(groups, key=lambda kind: -area[kind])}

    def to_json(self) -> str:
        """One line of JSON; `from_json` gives an equal scene, so equal pixels."""
        fields = vars(self) | {
            "objects": [vars(item) for item in self.objects],
            "background": vars(self.background),
        }
        return json.dumps(fields, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> "Scene":
        """Reads what `to_json` wrote."""
        fields = json.loads(text)
        objects = tuple(
            Object(**item | {"rgb": tuple(item["rgb"])}) for item in fields.pop("objects")
        )
        background = fields.pop("background")
        shades = {name: tuple(background[name]) for name in ("rgb", "rgb_2")}
        return Scene(objects=objects, background=Background(**background | shades), **fields)


def relation(first: Object, second: Object) -> str | None:
    """Where `first` is, seen from `second`: one of RELATIONS, or None when they are too close.

    The larger of the two offsets decides, so at most one relation holds between two objects.
    """
    dx, dy = first.x - second.x, first.y - second.y
    if max(abs(dx), abs(dy)) < RELATION_MARGIN:
        return None
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def group_relation(first: Sequence[Object], second: Sequence[Object]) -> str | None:
    """The relation that holds between every member of `first` and every one of `second`."""
    found = {relation(a, b) for a in first for b in second}
    return found.pop() if len(found) == 1 else None


def in_region(item: Object, region: str) -> bool:
    """Whether the object's centre lies in the named region (a key of REGIONS)."""
    x0, x1, y0, y1 = REGIONS[region]
    return x0 <= item.x <= x1 and y0 <= item.y <= y1


def common_region(items: Sequence[Object]) -> str | None:
    """The most specific region that holds all the centres; a single object always has one."""
    left, right = min(item.x for item in items), max(item.x for item in items)
    top, bottom = min(item.y for item in items), max(item.y for item in items)
    for region, (x0, x1, y0, y1) in REGIONS.items():
        if x0 <= left and right <= x1 and y0 <= top and bottom <= y1:
            return region
    return None


def separation(first: Object, second: Object) -> float:
    """Distance of the centres as a share of the sum of the radii: below 1, discs overlap."""
    distance = math.hypot(first.x - second.x, first.y - second.y)
    return distance / (first.radius + second.radius)
