"""Tables of aspect buckets: the sizes that a recipe may ask for (paper A.5, multi-scale training)."""

from collections.abc import Sequence
from typing import Literal

from pixart_core.errors import UserError

Size = tuple[int, int]  # (height, width) in pixels

# ASPECT_RATIO_1024 of the released code: height/width from 0.25 to 4, multiples of 64, about 1024² pixels.
# Its tables for 512 and 256 are these divided by 2 and 4. The one size without its transpose is (704, 1344).
PAPER_BUCKETS_1024: tuple[Size, ...] = (
    *((512, 2048), (512, 1984), (512, 1920), (512, 1856), (576, 1792), (576, 1728), (576, 1664)),
    *((640, 1600), (640, 1536), (704, 1472), (704, 1408), (704, 1344), (768, 1344), (768, 1280)),
    *((832, 1216), (832, 1152), (896, 1152), (896, 1088), (960, 1088), (960, 1024), (1024, 1024)),
    *((1024, 960), (1088, 960), (1088, 896), (1152, 896), (1152, 832), (1216, 832), (1280, 768)),
    *((1344, 768), (1408, 704), (1472, 704), (1536, 640), (1600, 640), (1664, 576), (1728, 576)),
    *((1792, 576), (1856, 512), (1920, 512), (1984, 512), (2048, 512)),
)
PAPER_RESOLUTIONS = (256, 512, 1024)


def bucket_table(spec: Literal["square", "paper"] | Sequence[Size], resolution: int) -> tuple[Size, ...]:
    """The (height, width) sizes in pixels that `spec` stands for.

    Args:
        spec: "square", "paper" (40 sizes), or the sizes themselves.
        resolution: pixels; the square root of a bucket's area. Not used when sizes are given.

    Raises:
        UserError: no such table, or an empty, repeated or non-positive size.
    """
    if spec == "square":
        return ((resolution, resolution),)
    if spec == "paper":
        if resolution not in PAPER_RESOLUTIONS:
            raise UserError(
                f"aspect_buckets: paper has tables for {', '.join(map(str, PAPER_RESOLUTIONS))} pixels, "
                f"not {resolution}; give a list of [height, width] instead"
            )
        divisor = 1024 // resolution
        return tuple((height // divisor, width // divisor) for height, width in PAPER_BUCKETS_1024)
    if isinstance(spec, str):
        raise UserError(f"aspect_buckets: {spec!r} is neither square, paper nor a list of [height, width]")
    sizes = tuple((int(height), int(width)) for height, width in spec)
    if not sizes or min(min(size) for size in sizes) < 1:
        raise UserError("aspect_buckets: give at least one [height, width], in positive pixels")
    if len(set(sizes)) < len(sizes):
        raise UserError("aspect_buckets: a size is given twice")
    return sizes
