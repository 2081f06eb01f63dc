"""Aspect buckets: the sizes that images of a batch are cut to (paper A.5, multi-scale training)."""

from collections.abc import Sequence
from fractions import Fraction

from pixart_core.recipe.buckets import PAPER_BUCKETS_1024, PAPER_RESOLUTIONS, Size, bucket_table

__all__ = ["PAPER_BUCKETS_1024", "PAPER_RESOLUTIONS", "Size", "assign_bucket", "bucket_table"]


def assign_bucket(height: int, width: int, table: Sequence[Size]) -> Size:
    """The size of `table` nearest in log(height/width) to an image; of equally near ones the first."""

    def distance(size: Size) -> Fraction:
        # exp|log(height/width) - log(bucket ratio)|, exactly, so that no rounding decides a tie.
        one, other = height * size[1], width * size[0]
        return Fraction(max(one, other), min(one, other))

    return min(table, key=distance)
