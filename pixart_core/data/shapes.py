"""Scenes of coloured shapes: drawing them at random, describing them, and rendering them.

A scene is one object at one of nine places, two objects in a relation, or the same object twice.
Everything is a pure function of (seed, split, index), and a scene renders at any picture size:
places scale with height and width, objects with the short side.
"""

import functools
import itertools
import random
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from pixart_core.seeding import derive_seed

Split = Literal["train", "heldout"]
Kind = Literal["single", "pair", "twins"]

# At least 100 apart in RGB from each other and from every background.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 25, 35),
    "green": (30, 165, 60),
    "blue": (30, 60, 230),
    "yellow": (250, 230, 40),
    "purple": (130, 20, 180),
    "orange": (250, 130, 20),
    "cyan": (40, 205, 230),
    "pink": (255, 130, 190),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
}
SHAPES = ("circle", "square", "triangle", "cross")
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
# Width of the bounding box as a share of the picture's short side: 18 and 28 of 64 pixels.
SIZES = {"small": 18 / 64, "large": 28 / 64}
# Centres (y, x) as shares of height and width.
POSITIONS: dict[str, tuple[float, float]] = {
    "top left": (0.25, 0.25),
    "top": (0.25, 0.5),
    "top right": (0.25, 0.75),
    "left": (0.5, 0.25),
    "center": (0.5, 0.5),
    "right": (0.5, 0.75),
    "bottom left": (0.75, 0.25),
    "bottom": (0.75, 0.5),
    "bottom right": (0.75, 0.75),
}
# Relation of the first object to the second, its words, and the places of both.
RELATIONS: dict[str, tuple[str, str, str]] = {
    "left": ("to the left of", "left", "right"),
    "right": ("to the right of", "right", "left"),
    "above": ("above", "top", "bottom"),
    "below": ("below", "bottom", "top"),
}
ARRANGEMENTS: dict[str, tuple[str, str]] = {"side by side": ("left", "right"), "stacked": ("top", "bottom")}
LABELS = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)

JITTER = 0.5 / 64
CROSS_ARM = 0.3  # width of an arm as a share of the cross
HELDOUT_ONE_IN = 10
# Five single objects, four pairs and twins in every block of ten.
KINDS_OF_TEN: tuple[Kind, ...] = (*("single", "pair") * 4, "single", "twins")


@dataclass(frozen=True)
class SceneObject:
    """One object; `center` is (y, x) in shares of height and width."""

    color: str
    shape: str
    size: str
    center: tuple[float, float]
    position: str | None = None

    @property
    def name(self) -> str:
        return f"{self.size} {self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        relation: None for a single object; left, right, above or below (of the first object to the
            second) for a pair; "side by side" or "stacked" for the same object twice.
    """

    background: str
    objects: tuple[SceneObject, ...]
    relation: str | None = None

    @property
    def content(self) -> str:
        """What is shown, whatever the background, the jitter and the words.

        "A left of B" and "B right of A" are one picture and have one content.
        """
        names = [thing.name for thing in self.objects]
        if self.relation in ("right", "below"):
            names.reverse()
        relation = {"right": "left", "below": "above"}.get(self.relation or "", self.relation)
        return "|".join([*names, str(relation or self.objects[0].position)])

    @property
    def held_out(self) -> bool:
        """Whether this content is kept out of training: one in ten, the same ones for every seed."""
        return derive_seed("shapes content", self.content) % HELDOUT_ONE_IN == 0

    @property
    def label(self) -> int:
        """Class of stage 1: colour and shape of the first object, an index into `LABELS`."""
        return LABELS.index(f"{self.objects[0].color} {self.objects[0].shape}")


class _Draws:
    """Choices from one seed. Only `random()` is used: Python promises it never changes."""

    def __init__(self, *parts: int | str) -> None:
        self._random = random.Random(derive_seed(*parts)).random

    def choose(self, options: Any) -> Any:
        options = tuple(options)
        return options[int(self._random() * len(options))]

    def center(self, place: str, jitter: tuple[float, float] = (JITTER, JITTER)) -> tuple[float, float]:
        y, x = POSITIONS[place]
        return y + (2 * self._random() - 1) * jitter[0], x + (2 * self._random() - 1) * jitter[1]


def draw_scene(seed: int, split: Split, index: int) -> Scene:
    """Draw scene `index` of a split.

    Training scenes have content that is never held out. Held-out scenes of one or of equal objects
    go through all held-out contents and backgrounds before one repeats.
    """
    draws = _Draws(seed, "shapes", split, index)
    # Each block of ten starts one kind later, so that sizes used in turn meet all kinds.
    kind = KINDS_OF_TEN[(index + index // 10) % 10]
    if split == "heldout" and kind != "pair":
        pool = _held_out_pool(seed, kind)
        turn = index // 2 if kind == "single" else index // 10
        return _place(draws, *pool[turn % len(pool)])
    while True:
        scene = _place(draws, kind, *_draw_parts(draws, kind))
        if scene.held_out == (split == "heldout"):
            return scene


def _draw_parts(draws: _Draws, kind: Kind) -> tuple[str, list[tuple[str, str, str]], str]:
    """Draw (background, [(color, shape, size)], position or relation)."""

    def thing() -> tuple[str, str, str]:
        return draws.choose(COLORS), draws.choose(SHAPES), draws.choose(SIZES)

    background, things = draws.choose(BACKGROUNDS), [thing()]
    if kind == "single":
        return background, things, draws.choose(POSITIONS)
    if kind == "twins":
        return background, things, draws.choose(ARRANGEMENTS)
    while len(things) < 2:
        other = thing()
        if other[:2] != things[0][:2]:  # a pair differs in colour or shape
            things.append(other)
    return background, things, draws.choose(RELATIONS)


def _place(
    draws: _Draws, kind: Kind, background: str, things: list[tuple[str, str, str]], where: str
) -> Scene:
    if kind == "single":
        return Scene(background, (SceneObject(*things[0], draws.center(where), where),))
    first, second = RELATIONS[where][1:] if kind == "pair" else ARRANGEMENTS[where]
    # Half the jitter along the axis keeps large neighbours 4 of 64 pixels apart.
    along = (JITTER / 2, JITTER) if first in ("top", "bottom") else (JITTER, JITTER / 2)
    objects = (
        SceneObject(*things[0], draws.center(first, along)),
        SceneObject(*things[-1], draws.center(second, along)),
    )
    return Scene(background, objects, where)


@functools.lru_cache(maxsize=8)
def _held_out_pool(seed: int, kind: Kind) -> list[tuple[Kind, str, list[tuple[str, str, str]], str]]:
    """Every held-out (kind, background, things, place) of single objects or twins, shuffled by `seed`."""
    places = POSITIONS if kind == "single" else ARRANGEMENTS
    pool: list[tuple[int, tuple[Kind, str, list[tuple[str, str, str]], str]]] = []
    for background, color, shape, size, where in itertools.product(
        BACKGROUNDS, COLORS, SHAPES, SIZES, places
    ):
        parts = (kind, background, [(color, shape, size)], where)
        scene = _place(_Draws("pool"), *parts)
        if scene.held_out:
            pool.append((derive_seed(seed, "shapes pool", background, scene.content), parts))
    return [parts for _, parts in sorted(pool)]


def scene_caption(scene: Scene) -> str:
    """Describe `scene` in one lower-case phrase, e.g. "a small red circle at the top left on a ..."."""
    end = f"on a {scene.background} background"
    first = scene.objects[0]
    if scene.relation is None:
        return f"a {first.name} at the {first.position} {end}"
    if scene.relation in ARRANGEMENTS:
        return f"two {first.size} {first.color} {PLURALS[first.shape]} {scene.relation} {end}"
    return f"a {first.name} {RELATIONS[scene.relation][0]} a {scene.objects[1].name} {end}"


def object_box(thing: SceneObject, height: int, width: int) -> tuple[float, float, float, float]:
    """Bounding box (x0, y0, x1, y1) of an object in pixels; always inside the picture."""
    radius = SIZES[thing.size] * min(height, width) / 2
    # An object at the side of a narrow picture would stick out: a pixel of margin stays.
    y = min(max(thing.center[0] * height, radius + 1), height - radius - 1)
    x = min(max(thing.center[1] * width, radius + 1), width - radius - 1)
    return x - radius, y - radius, x + radius, y + radius


def scene_meta(scene: Scene, height: int, width: int) -> dict[str, Any]:
    """The ground truth of a picture as plain JSON; boxes are (x0, y0, x1, y1) in pixels."""
    objects = [
        {
            "color": thing.color,
            "shape": thing.shape,
            "size": thing.size,
            "position": thing.position,
            "box": [round(edge, 2) for edge in object_box(thing, height, width)],
        }
        for thing in scene.objects
    ]
    return {
        "background": scene.background,
        "count": len(objects),
        "relation": scene.relation,
        "objects": objects,
    }


def scene_from_meta(meta: dict[str, Any], height: int, width: int) -> Scene:
    """The scene that `scene_meta(scene, height, width)` describes.

    Raises:
        KeyError: `meta` is not the ground truth of generated shapes.
    """
    objects = []
    for thing in meta["objects"]:
        x0, y0, x1, y1 = thing["box"]
        center = ((y0 + y1) / 2 / height, (x0 + x1) / 2 / width)
        objects.append(SceneObject(thing["color"], thing["shape"], thing["size"], center, thing["position"]))
    return Scene(meta["background"], tuple(objects), meta["relation"])


def shape_distance(
    shape: str, x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."], radius: float
) -> Float[np.ndarray, "..."]:
    """Signed distance (negative inside) of points to a shape in a box of +-radius; y points down."""
    ax, ay = np.abs(x), np.abs(y)
    if shape == "circle":
        return np.sqrt(x * x + y * y) - radius
    if shape == "square":
        return np.maximum(ax, ay) - radius
    if shape == "cross":
        arm = CROSS_ARM * radius
        return np.minimum(np.maximum(ax - arm, ay - radius), np.maximum(ay - arm, ax - radius))
    # Triangle, tip up: below its base and outside its sides 2|x| + (-y) = radius.
    return np.maximum(y - radius, (2 * ax - y - radius) / np.sqrt(5.0))


def render_scene(scene: Scene, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Draw `scene` with anti-aliased edges (coverage = distance to the edge in pixels)."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = BACKGROUNDS[scene.background]
    for thing in scene.objects:
        x0, y0, x1, y1 = object_box(thing, height, width)
        left, top, right, bottom = int(x0) - 1, int(y0) - 1, int(x1) + 2, int(y1) + 2
        left, top = max(left, 0), max(top, 0)
        window = picture[top:bottom, left:right]
        y = np.arange(top, top + window.shape[0], dtype=np.float32)[:, None] + 0.5 - (y0 + y1) / 2
        x = np.arange(left, left + window.shape[1], dtype=np.float32)[None] + 0.5 - (x0 + x1) / 2
        coverage = np.clip(0.5 - shape_distance(thing.shape, x, y, (x1 - x0) / 2), 0, 1)[..., None]
        # 0.5 is added because the conversion to integers cuts off.
        window[:] = window * (1 - coverage) + np.array(COLORS[thing.color]) * coverage + 0.5
    return picture
