"""Draws scene graphs: `World` holds the options, and one scene is one generator's draws."""

import bisect
import colorsys
import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from big_mm.data.scenes.world import (
    COLOURS,
    MAX_OBJECTS,
    PATTERNS,
    SIZES,
    TEXTURES,
    TONES,
    Background,
    Kind,
    Object,
    Scene,
)
from big_mm.spec import UserError

# Hue in degrees, saturation, value. Hues are spaced for the eye: far apart where it is coarse.
_HSV = {
    "red": (358, 0.90, 0.86),
    "orange": (27, 0.95, 1.00),
    "yellow": (54, 0.92, 0.99),
    "green": (128, 0.80, 0.65),
    "cyan": (183, 0.80, 0.92),
    "blue": (224, 0.88, 0.90),
    "purple": (277, 0.75, 0.72),
    "pink": (330, 0.45, 1.00),
}
_TONE_VALUES = {"light": (0.86, 0.98), "grey": (0.40, 0.55), "dark": (0.06, 0.18)}
# An outline may reach this far beyond the nominal radius (the tip of a star).
REACH = 1.15
# The sum of squared radii up to which random placement reliably finds room.
_MAX_FILL = 0.145
_PLACEMENTS = 128
_ATTEMPTS = 200


@dataclasses.dataclass(frozen=True)
class World:
    """How scenes are drawn; `WORLDS` has the named ones.

    Attributes:
      count_weights: relative frequency of 1, 2, ... 6 objects.
      kind_weights: relative frequency of 1, 2, ... different kinds, cut at the number of objects.
      radii: the interval of radii of each of SIZES, as fractions of the image's side.
      same_details: probability that all objects of one kind share size and texture.
      texture_weights: relative frequency of TEXTURES.
      max_overlap: how deep two objects may overlap, as a share of the sum of their radii.
      max_rotation: largest turn of an object either way, in radians.
      colour_jitter: scale of the jitter of hue, saturation and brightness (1 = default).
      noise: largest standard deviation of the pixel noise, in units of 0 to 255.
      tones, patterns: of the background, all equally frequent.
    """

    count_weights: tuple[float, ...] = (0.28, 0.20, 0.18, 0.14, 0.11, 0.09)
    kind_weights: tuple[float, ...] = (0.30, 0.40, 0.30)
    radii: tuple[tuple[float, float], ...] = ((0.105, 0.125), (0.155, 0.180), (0.220, 0.260))
    same_details: float = 0.75
    texture_weights: tuple[float, ...] = (0.5, 0.25, 0.25)
    max_overlap: float = 0.08
    max_rotation: float = 0.35
    colour_jitter: float = 1.0
    noise: float = 6.0
    tones: tuple[str, ...] = TONES
    patterns: tuple[str, ...] = PATTERNS

    def __post_init__(self):
        for name, most in (
            ("count_weights", MAX_OBJECTS),
            ("kind_weights", MAX_OBJECTS),
            ("texture_weights", len(TEXTURES)),
        ):
            weights = getattr(self, name)
            if not 1 <= len(weights) <= most or min(weights) < 0 or not sum(weights):
                raise UserError(
                    f"{name} must be 1 to {most} weights, none negative and not all 0: {weights}"
                )
        for name in ("same_details", "max_overlap", "max_rotation", "colour_jitter", "noise"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, but is {getattr(self, name)}")
        for name, known in (("tones", TONES), ("patterns", PATTERNS)):
            chosen = getattr(self, name)
            if not chosen or not set(chosen) <= set(known):
                raise UserError(f"{name} must be some of {', '.join(known)}, not {chosen}")
        room = math.sqrt(_MAX_FILL / len(self.count_weights))
        if len(self.radii) != len(SIZES) or self.radii[0][1] > room:
            raise UserError(
                f"radii must be {len(SIZES)} intervals, the first up to {room:.3f} at most, so "
                f"that {len(self.count_weights)} small objects have room: {self.radii}"
            )

    def sample(self, rng: np.random.Generator, kinds: Sequence[Kind]) -> Scene:
        """Draws a scene of objects whose (colour, shape) are all among `kinds`."""
        num_objects = 1 + _pick(rng, self.count_weights)
        limit = min(num_objects, len(kinds), len(self.kind_weights))
        # Where no allowed number of kinds fits (two kinds wanted, one object), take the most.
        weights = self.kind_weights[:limit]
        num_kinds = 1 + _pick(rng, weights) if sum(weights) else limit
        order = rng.permutation(len(kinds))[:num_kinds]
        counts = _composition(rng, num_objects, num_kinds)
        members = [kinds[i] for i, count in zip(order, counts, strict=True) for _ in range(count)]
        details = self._place(rng, members)
        draw_order = rng.permutation(num_objects)
        objects = tuple(self._object(rng, members[i], *details[i]) for i in draw_order)
        return Scene(
            objects=objects,
            background=_background(rng, self.tones, self.patterns),
            noise=round(self.noise * rng.random(), 2),
            noise_seed=int(rng.integers(2**31)),
        )

    def _place(self, rng, members: list[Kind]) -> list[tuple]:
        """(size, texture, radius, x, y) of each object, so that all fit and barely overlap."""
        for attempt in range(_ATTEMPTS):
            # Crowded scenes that do not fit are retried, at last with small objects only.
            only_small = attempt > _ATTEMPTS // 2
            details = self._details(rng, members, only_small)
            radii = [radius for _, _, radius in details]
            if len(radii) > 1 and sum(radius**2 for radius in radii) > _MAX_FILL:
                continue
            centres = self._centres(rng, radii)
            if centres is not None:
                return [(*d, *c) for d, c in zip(details, centres, strict=True)]
        raise UserError(f"no room for {len(members)} objects: reduce World.radii or count_weights")

    def _details(self, rng, members: list[Kind], only_small: bool) -> list[tuple]:
        """(size, texture, radius) of each object; those of one kind mostly share the first two."""
        details: list[tuple] = []
        for _, group in itertools.groupby(members):
            shared = rng.random() < self.same_details
            for i, _ in enumerate(group):
                if i == 0 or not shared:
                    size = 0 if only_small else int(rng.random() * len(SIZES))
                    texture = _pick(rng, self.texture_weights)
                low, high = self.radii[size]
                radius = round(low + (high - low) * rng.random(), 4)
                details.append((SIZES[size], TEXTURES[texture], radius))
        return details

    def _centres(self, rng, radii: list[float]) -> list[tuple[float, float]] | None:
        """Random sequential placement, the largest first; None when one finds no room."""
        centres = np.zeros((len(radii), 2))
        placed: list[int] = []
        for i in sorted(range(len(radii)), key=lambda i: -radii[i]):
            margin = min(radii[i] * REACH, 0.5)
            candidates = margin + (1 - 2 * margin) * rng.random((_PLACEMENTS, 2))
            if placed:
                offsets = candidates[:, None] - centres[placed]
                distances = np.sqrt((offsets * offsets).sum(-1))
                needed = (1 - self.max_overlap) * (np.take(radii, placed) + radii[i])
                free = (distances >= needed).all(1)
                chosen = int(free.argmax())
                if not free[chosen]:
                    return None
            else:
                chosen = 0
            centres[i] = candidates[chosen]
            placed.append(i)
        return [(round(x, 4), round(y, 4)) for x, y in centres.tolist()]

    def _object(self, rng, kind: Kind, size, texture, radius, x, y) -> Object:
        jitter = rng.uniform(-1, 1, 3) * self.colour_jitter
        angle, texture_angle, phase = rng.random(3).tolist()
        return Object(
            shape=kind[1],
            colour=kind[0],
            size=size,
            texture=texture,
            x=x,
            y=y,
            radius=radius,
            angle=round((2 * angle - 1) * self.max_rotation, 4),
            rgb=_jittered(kind[0], *jitter.tolist()),
            texture_angle=round(math.pi * texture_angle, 4),
            texture_phase=round(phase, 4),
        )


DEFAULT_WORLD = World()
# What a shape looks like is the slow thing to learn, and slower the smaller the objects, the more
# their textures cut them up, and the more tones they stand out from.
WORLDS = {
    "full": DEFAULT_WORLD,
    "easy": World(
        count_weights=(0.34, 0.24, 0.18, 0.12, 0.07, 0.05),
        radii=((0.135, 0.155), (0.195, 0.220), (0.260, 0.290)),
        texture_weights=(0.8, 0.1, 0.1),
        max_rotation=0.2,
        noise=3.0,
        tones=("light",),
        patterns=("plain", "gradient"),
    ),
}


def nominal_rgb(colour: str) -> tuple[int, int, int]:
    """The colour without jitter, 0 to 255."""
    return _jittered(colour, 0.0, 0.0, 0.0)


def _jittered(colour: str, hue_jitter: float, saturation_jitter: float, value_jitter: float):
    hue, saturation, value = _HSV[colour]
    hue = (hue + 5 * hue_jitter) % 360
    saturation = min(max(saturation * (1 + 0.08 * saturation_jitter), 0.0), 1.0)
    value = min(max(value * (1 + 0.08 * value_jitter), 0.0), 1.0)
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue / 360, saturation, value))


def _background(rng, tones: Sequence[str], patterns: Sequence[str]) -> Background:
    tone = tones[int(rng.random() * len(tones))]
    pattern = patterns[int(rng.random() * len(patterns))]
    hue, tint, value, contrast, angle = rng.random(5).tolist()
    low, high = _TONE_VALUES[tone]
    level = low + (high - low) * value
    # The second shade stays within the tone: it moves towards the far end of its interval.
    other = level + (0.5 + 0.5 * contrast) * ((low if value > 0.5 else high) - level)
    shades = [
        tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.06 * tint, shade))
        for shade in (level, other)
    ]
    return Background(tone, pattern, shades[0], shades[1], round(2 * math.pi * angle, 4))


def _pick(rng, weights: Sequence[float]) -> int:
    """An index with probability proportional to its weight; far faster than rng.choice."""
    cumulative = list(itertools.accumulate(weights))
    return bisect.bisect_right(cumulative, rng.random() * cumulative[-1])


def _composition(rng, total: int, parts: int) -> list[int]:
    """`total` as an ordered sum of `parts` positive numbers, all compositions equally likely."""
    cuts = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1 if parts > 1 else []
    edges = [0, *map(int, cuts), total]
    return [b - a for a, b in itertools.pairwise(edges)]


assert set(_HSV) == set(COLOURS)
