"""Options of what a training does about a step that fails."""

from typing import Literal

from pydantic import Field, PositiveInt

from pixart_core.recipe.base import Strict


class NonFiniteOptions(Strict):
    """What happens when loss or gradient are not finite; the weights are never touched by such a step."""

    action: Literal["skip", "rollback", "stop"] = Field(
        "skip",
        description="skip: go on without the step's update. rollback: go back to the last state, do the "
        "steps again, and skip the one that fails again. stop: end there.",
    )
    in_a_row: PositiveInt = Field(3, description="So many skipped steps after one another end the training.")
    in_all: PositiveInt = Field(20, description="So many skipped steps in all end the training.")


# Fields of `TrainStep` that may change when a training is continued.
FAILING = frozenset({"non_finite"})
