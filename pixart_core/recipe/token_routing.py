"""Options of token routing, and what they mean for a model and a step."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from pixart_core.errors import UserError
from pixart_core.recipe.base import Strict


class TokenRouting(Strict):
    """Part of the tokens skips the blocks in the middle while training (TREAD, Krause et al., 2025)."""

    selection_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.5, description="Share of the tokens that skip the blocks."
    )
    start_block: NonNegativeInt = Field(2, description="First block that they skip, counted from 0.")
    end_block: PositiveInt | None = Field(
        None, description="First block that takes all tokens again; default: num_layers - start_block."
    )
    off_for_last: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="Share of the steps, at the end, in which all tokens take all blocks."
    )

    def blocks(self, num_layers: int) -> range:
        """The blocks that are skipped.

        Raises:
            UserError: they are none, or not before the last block.
        """
        end = num_layers - self.start_block if self.end_block is None else self.end_block
        if not self.start_block < end < num_layers:
            raise UserError(
                f"token_routing skips blocks {self.start_block} to {end - 1} of a model with {num_layers}: "
                f"start_block must be below end_block, and end_block at most {num_layers - 1}"
            )
        return range(self.start_block, end)

    def kept(self, tokens: int) -> int:
        """How many of `tokens` take all blocks: one at least."""
        return max(1, tokens - round(self.selection_ratio * tokens))

    def steps(self, max_train_steps: int) -> int:
        """Steps with routing; those after them have none."""
        return round((1.0 - self.off_for_last) * max_train_steps)
