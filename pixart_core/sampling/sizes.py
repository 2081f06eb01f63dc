"""The picture sizes that a model was trained for, and how far from them it may be asked to draw."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.models.config import TransformerConfig
from pixart_core.models.resolution import RELEASED_RESOLUTIONS, position_range, released_resolution

Size = tuple[int, int]  # (height, width) in pixels

# Twice the pixels, half of them, or a picture twice as long. A 256 px model at 384x384 has 2.25 times the
# pixels: it then draws things double or cut off, without any error.
FAR = 2.0
# Height / width of the outermost of the 40 sizes that the released 1024 px weights were trained on.
RELEASED_ASPECTS = (0.25, 4.0)


def trained_sizes(facts: ModelFacts, config: TransformerConfig, pixels_per_latent: int) -> tuple[Size, ...]:
    """Sizes trained on: as the facts say, else the square that the positions were made for.

    Released weights do not tell; those with micro-conditions were trained in aspect buckets.
    """
    if facts.trained_sizes:
        return facts.trained_sizes
    current = (config.sample_size, config.interpolation_scale)
    side = (facts.trained_positions or current)[0] * pixels_per_latent
    square = (side, side)
    if not config.use_additional_conditions or facts.trained_positions not in (None, current):
        return (square,)
    outermost = tuple((round(side * aspect**0.5), round(side / aspect**0.5)) for aspect in RELEASED_ASPECTS)
    return (square, *outermost)


def positions_changed(facts: ModelFacts, config: TransformerConfig) -> bool:
    """Whether the range of the positions is another than the weights were trained with."""
    if facts.trained_positions is None:
        return False
    before = position_range(facts.trained_positions[0], config.patch_size, facts.trained_positions[1])
    now = position_range(config.sample_size, config.patch_size, config.interpolation_scale)
    return abs(before - now) > 1e-6 * now


class Distance(NamedTuple):
    """How a size differs from all that were trained on, in words."""

    by: Literal["pixels", "shape"]
    words: str


def how_far(size: Size, trained: Sequence[Size]) -> Distance | None:
    """None when `size` is near enough to `trained`.

    Near are between half the pixels of the smallest and twice those of the largest, and a height / width
    between half the smallest and twice the largest.
    """
    area, areas = size[0] * size[1], [height * width for height, width in trained]
    if area > FAR * max(areas) or FAR * area < min(areas):
        nearest = max(areas) if area > max(areas) else min(areas)
        return Distance("pixels", f"has {area / nearest:.2g} times the pixels")
    aspect, aspects = size[0] / size[1], [height / width for height, width in trained]
    if aspect > FAR * max(aspects):
        return Distance("shape", f"is {aspect / max(aspects):.2g} times as tall for its width")
    if FAR * aspect < min(aspects):
        return Distance("shape", f"is {min(aspects) / aspect:.2g} times as wide for its height")
    return None


def default_size(config: TransformerConfig, pixels_per_latent: int, trained: Sequence[Size]) -> Size:
    """The square that the positions are made for; where it was not trained on, the squarest of `trained`.

    A model of 64x96 and 96x64 draws its things double or cut off at 96x96.
    """
    side = config.sample_size * pixels_per_latent
    square = (side, side)
    if square in trained or (len(trained) == 1 and how_far(square, trained) is None):
        return square
    return min(trained, key=lambda size: (max(size) / min(size), -size[0] * size[1]))


def name_sizes(sizes: Sequence[Size]) -> str:
    """A few of `sizes` and how many more there are."""
    named = ", ".join(f"{height}x{width}" for height, width in sizes[:3])
    return f"{named} and {len(sizes) - 3} more sizes" if len(sizes) > 3 else named


def how_to_train(size: Size, far: Distance, source: str, config: TransformerConfig, factor: int) -> str:
    """What makes of the model `source` one for `size`.

    Args:
        factor: pixels per latent pixel, along a side.
    """
    if far.by == "shape":
        return "train on with such aspect_buckets"
    side = (size[0] * size[1]) ** 0.5
    near = [
        pixels
        for pixels in RELEASED_RESOLUTIONS
        if pixels / FAR**0.5 < side < pixels * FAR**0.5
        # Micro-conditions cannot be taken away; `positions` keeps them.
        and (released_resolution(pixels).use_additional_conditions or not config.use_additional_conditions)
    ]
    if near and factor == 8:
        change = f"resolution={near[0]}"
    else:
        change = (
            f"positions.sample_size={max(1, round(side / factor / config.patch_size)) * config.patch_size}"
        )
    return f"change its resolution (pixart convert --from {source} --to pixart {change}) and train on"
