"""Options of the optimisers."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from pixart_core.recipe.base import Fraction, Strict


class AdamWOptions(Strict):
    """AdamW with the paper's weight decay and the released code's eps."""

    kind: Literal["adamw"] = "adamw"
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1.0e-10
    weight_decay: NonNegativeFloat = 0.03


class MuonOptions(Strict):
    """Muon on the hidden weight matrices, AdamW on everything else."""

    kind: Literal["muon"] = "muon"
    momentum: Fraction = 0.95
    weight_decay: NonNegativeFloat = 0.03
    adamw_learning_rate: PositiveFloat | None = Field(None, description="None: learning_rate.")
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1.0e-10


OptimizerOptions = Annotated[AdamWOptions | MuonOptions, Field(discriminator="kind")]
