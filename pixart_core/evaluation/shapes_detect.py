"""What a picture of shapes shows, found analytically: no learned detector, and "unknown" is an answer.

Background = colour of the border; objects = connected regions that differ from it; the shape is the
template with the best soft overlap, if it is clearly the best; the size follows from shape and area.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from pixart_core.data.shapes import (
    ARRANGEMENTS,
    BACKGROUNDS,
    COLORS,
    CROSS_ARM,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    shape_distance,
)

UNKNOWN = "unknown"

COLOR_TOLERANCE = 60.0  # RGB distance; names are at least 100 apart
COLOR_MARGIN = 20.0  # how much nearer than the runner-up
BORDER_SHARE = 0.7  # of the border pixels must agree on the background
FOREGROUND = 50.0  # RGB distance from the background
# Regions below this share of the smallest object (a small triangle) are specks, not objects.
SPECK = 0.2
SIZE_TOLERANCE = 0.2  # relative; small and large are a factor of 1.56 apart
POSITION_TOLERANCE = 0.1  # share of height or width; places are 0.25 apart
MIN_OVERLAP = 0.84
OVERLAP_MARGIN = 0.05
BLURS = (0.0, 0.8, 1.3)  # pixels; a generated picture may be this blurred
# Area of a shape as a share of its squared width.
AREAS = {
    "circle": math.pi / 4,
    "square": 1.0,
    "triangle": 0.5,
    "cross": 2 * CROSS_ARM - CROSS_ARM**2,
}


@dataclass(frozen=True)
class DetectedObject:
    """An object; each name may be "unknown". `center` is (y, x) in shares of height and width."""

    color: str
    shape: str
    size: str
    center: tuple[float, float]

    @property
    def name(self) -> tuple[str, str, str]:
        return self.size, self.color, self.shape

    @property
    def position(self) -> str:
        """Which of the nine places the object is at."""
        for name, (y, x) in POSITIONS.items():
            if max(abs(self.center[0] - y), abs(self.center[1] - x)) <= POSITION_TOLERANCE:
                return name
        return UNKNOWN


@dataclass(frozen=True)
class Detection:
    """What was found in a picture. No objects on an unknown background: nothing could be told."""

    background: str
    objects: tuple[DetectedObject, ...]


def detect_scene(picture: UInt8[np.ndarray, "height width 3"]) -> Detection:
    """Find the background and the objects of a picture, tolerating slight blur and noise."""
    pixels = picture.astype(np.float32)
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)])
    border = np.concatenate([border, pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)])
    background = np.median(border, axis=0)
    if (_distance(border, background) < COLOR_TOLERANCE).mean() < BORDER_SHARE:
        return Detection(UNKNOWN, ())

    regions = [
        part
        for region in _regions(_distance(pixels, background) > FOREGROUND, picture.shape[:2])
        for part in _split_by_color(pixels, region)
    ]
    objects = tuple(_describe(pixels, region, background) for region in regions)
    return Detection(_nearest(background, BACKGROUNDS), objects)


def relation_of(first: DetectedObject, second: DetectedObject) -> str:
    """left, right, above or below, of the first object to the second; unknown on a diagonal."""
    dy, dx = (a - b for a, b in zip(first.center, second.center, strict=True))
    if max(abs(dx), abs(dy)) < 0.2 or min(abs(dx), abs(dy)) > 0.5 * max(abs(dx), abs(dy)):
        return UNKNOWN
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def arrangement_of(first: DetectedObject, second: DetectedObject) -> str:
    """ "side by side", "stacked" or unknown."""
    places = RELATIONS.get(relation_of(first, second), ("", "", ""))[1:]
    for name, pair in ARRANGEMENTS.items():
        if set(places) == set(pair):
            return name
    return UNKNOWN


def _distance(a: Float[np.ndarray, "... 3"], b: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "..."]:
    return np.sqrt(((a - b) ** 2).sum(-1))


def _nearest(color: Float[np.ndarray, " 3"], names: Mapping[str, tuple[int, int, int]]) -> str:
    table = np.array(list(names.values()), dtype=np.float32)
    distances = _distance(table, color)
    order = np.argsort(distances)
    if distances[order[0]] > COLOR_TOLERANCE or distances[order[1]] - distances[order[0]] < COLOR_MARGIN:
        return UNKNOWN
    return list(names)[order[0]]


def _regions(
    mask: Bool[np.ndarray, "height width"], size: tuple[int, ...]
) -> list[Bool[np.ndarray, "height width"]]:
    """Connected regions that are no specks."""
    smallest = AREAS["triangle"] * (min(SIZES.values()) * min(size)) ** 2
    labels, count = ndimage.label(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    return [labels == i for i in range(1, count + 1) if areas[i] >= SPECK * smallest]


def _split_by_color(
    pixels: Float[np.ndarray, "height width 3"], region: Bool[np.ndarray, "height width"]
) -> list[Bool[np.ndarray, "height width"]]:
    """Two touching objects of different colours are two regions.

    A colour counts where it is more than a rim: a blurred red edge on white is pink.
    """
    table = np.array(list(COLORS.values()), dtype=np.float32)
    distances = np.sqrt(((pixels[:, :, None] - table) ** 2).sum(-1))
    nearest = np.where(distances.min(-1) < COLOR_TOLERANCE, distances.argmin(-1), -1)
    solid = [ndimage.binary_erosion(region & (nearest == i)).sum() for i in range(len(COLORS))]
    colors = np.flatnonzero(np.array(solid) > 0.05 * region.sum())
    if len(colors) < 2:
        return [region]
    owner = colors[distances[..., colors].argmin(-1)]
    parts = [part for color in colors for part in _regions(region & (owner == color), region.shape)]
    return parts or [region]


def _describe(
    pixels: Float[np.ndarray, "height width 3"],
    region: Bool[np.ndarray, "height width"],
    background: Float[np.ndarray, " 3"],
) -> DetectedObject:
    height, width = region.shape
    inside = ndimage.binary_erosion(region, iterations=2)
    color = np.median(pixels[inside if inside.sum() >= 4 else region], axis=0)
    # How much of each pixel is object: its place on the line from background to object colour.
    axis = color - background
    coverage = np.clip((pixels - background) @ axis / max(float(axis @ axis), 1.0), 0, 1)
    coverage *= ndimage.binary_dilation(region, iterations=2)
    rows, columns = (
        slice(max(0, s.start - 3), s.stop + 3) for s in ndimage.find_objects(region.astype(np.int8))[0]
    )

    shape, (y, x), across = _fit_shape(coverage[rows, columns])
    y, x = y + rows.start, x + columns.start
    size = UNKNOWN
    for name, share in SIZES.items():
        if abs(across / (share * min(height, width)) - 1) < SIZE_TOLERANCE:
            size = name
    return DetectedObject(_nearest(color, COLORS), shape, size, (y / height, x / width))


def _fit_shape(coverage: Float[np.ndarray, "height width"]) -> tuple[str, tuple[float, float], float]:
    """Best template of equal area and centroid: (shape, centre (y, x) in pixels, width in pixels)."""
    area = float(coverage.sum())
    rows, columns = np.mgrid[: coverage.shape[0], : coverage.shape[1]].astype(np.float32) + 0.5
    y = float((coverage * rows).sum() / area)
    x = float((coverage * columns).sum() / area)

    fits = {}
    templates = {}
    for shape in SHAPES:
        across = math.sqrt(area / AREAS[shape])
        # The centroid of the triangle is a sixth of its height below the centre of its box.
        center_y = y - across / 6 if shape == "triangle" else y
        distance = shape_distance(shape, columns - x, rows - center_y, across / 2)
        templates[shape] = np.clip(0.5 - distance, 0, 1)
        fits[shape] = (center_y, x), across
    # The blur at which some template fits best; all templates are compared at that one.
    best, second = max((_two_best(coverage, templates, blur) for blur in BLURS), key=lambda two: two[0])
    if best[0] >= MIN_OVERLAP and best[0] - second[0] >= OVERLAP_MARGIN:
        return best[1], *fits[best[1]]
    # Not one of ours: its place and width are those of its bounding box.
    ys, xs = np.nonzero(coverage > 0.5) if (coverage > 0.5).any() else np.nonzero(coverage > 0)
    across = float(max(np.ptp(ys), np.ptp(xs))) + 1
    return UNKNOWN, ((ys.min() + ys.max() + 1) / 2, (xs.min() + xs.max() + 1) / 2), across


def _two_best(
    coverage: Float[np.ndarray, "height width"],
    templates: Mapping[str, Float[np.ndarray, "height width"]],
    blur: float,
) -> tuple[tuple[float, str], tuple[float, str]]:
    """The two largest (soft overlap, shape) of templates blurred by `blur` pixels."""
    overlaps = []
    for shape, template in templates.items():
        soft = ndimage.gaussian_filter(template, blur) if blur else template
        overlap = np.minimum(coverage, soft).sum() / np.maximum(coverage, soft).sum()
        overlaps.append((float(overlap), shape))
    best, second = sorted(overlaps, reverse=True)[:2]
    return best, second


def describe(found: Detection) -> str:
    """What was found, in words for a person."""
    if found.background == UNKNOWN and not found.objects:
        return "nothing that can be told"
    things = [f"{' '.join(thing.name)} ({_place(thing)})" for thing in found.objects]
    return f"{', '.join(things) or 'no object'} on {found.background}"


def _place(thing: DetectedObject) -> str:
    return thing.position if thing.position != UNKNOWN else "between places"
