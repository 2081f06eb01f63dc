"""Token routing: while it trains, part of the tokens skips the blocks in the middle.

TREAD (Krause et al., 2025): cheaper steps without new weights. Which tokens go which way is drawn outside.
"""

from jaxtyping import Float, Int
from torch import Tensor


class TokenRoute:
    """The way of one forward pass: `kept` tokens go through all blocks, the others not through `blocks`.

    Args:
        kept: places of the kept tokens, different ones, of each picture; None: all are kept.
        blocks: consecutive blocks, not up to the last.
    """

    def __init__(self, kept: Int[Tensor, "b k"] | None, blocks: range) -> None:
        assert kept is None or blocks, "the model's `routed_blocks` are not set"
        self.kept = kept
        self.blocks = blocks
        self.aside: Tensor | None = None

    def before(self, block: int, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The tokens that block number `block` takes, `x` being what the one before made."""
        if self.kept is None:
            return x
        places = self.kept[:, :, None].expand(-1, -1, x.shape[-1])  # (b, k, d)
        if block == self.blocks.start:
            self.aside = x
            return x.gather(1, places)
        if block == self.blocks.stop:
            assert self.aside is not None
            # What skipped the blocks comes back as it was, in its place.
            return self.aside.scatter(1, places, x)
        return x
