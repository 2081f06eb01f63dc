"""Options of the optimisers."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from pixart_core.recipe.base import Strict

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]  # share of a running mean that a step keeps


class AdamWOptions(Strict):
    """AdamW with the paper's weight decay and the released code's eps."""

    kind: Literal["adamw"] = "adamw"
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: PositiveFloat = 1.0e-10
    weight_decay: NonNegativeFloat = 0.03


class AdamW8bitOptions(Strict):
    """AdamW whose moments take a byte each instead of four; less than 4096 elements stay as they are."""

    kind: Literal["adamw8bit"] = "adamw8bit"
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: PositiveFloat = 1.0e-10
    weight_decay: NonNegativeFloat = 0.03


class CameOptions(Strict):
    """CAME (Luo et al., 2023): one moment, and the other by rows and columns; wants a warm-up."""

    kind: Literal["came"] = "came"
    betas: tuple[Decay, Decay, Decay] = (0.9, 0.999, 0.9999)
    eps: tuple[PositiveFloat, PositiveFloat] = (1.0e-30, 1.0e-16)
    clip_threshold: PositiveFloat = Field(1.0, description="Largest root mean square of a matrix's update.")
    weight_decay: NonNegativeFloat = 0.03


class MuonOptions(Strict):
    """Muon on the hidden weight matrices, AdamW on everything else."""

    kind: Literal["muon"] = "muon"
    momentum: Decay = 0.95
    weight_decay: NonNegativeFloat = 0.03
    adamw_learning_rate: PositiveFloat | None = Field(None, description="None: learning_rate.")
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: PositiveFloat = 1.0e-10


OptimizerOptions = Annotated[
    AdamWOptions | AdamW8bitOptions | CameOptions | MuonOptions, Field(discriminator="kind")
]
