"""Options of `pixart train`: the model, its start, the optimiser, the run."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pixart_core.recipe.base import Fraction, Source, Strict
from pixart_core.sizes import SIZES, SizeName


class ModelOptions(Strict):
    """A transformer to initialise; names as in diffusers. XL/2 is the default."""

    size: SizeName | None = Field(
        None, description="Named size of DiT: sets num_layers, num_attention_heads, attention_head_dim."
    )
    conditioning: Literal["text", "class"] = "text"
    modulation: Literal["adaln_single", "adaln"] | None = Field(
        None,
        description="adaln_single (the paper; default for text) or an MLP per block, adaln (DiT; default "
        "for class).",
    )
    num_layers: PositiveInt = 28
    num_attention_heads: PositiveInt = 16
    attention_head_dim: PositiveInt = 72
    patch_size: PositiveInt = 2
    sample_size: PositiveInt = Field(32, description="Side of the training latents.")
    interpolation_scale: PositiveFloat = 1.0
    use_additional_conditions: bool = Field(
        False, description="Resolution and aspect-ratio embeddings (MS variant)."
    )
    learned_variance: bool = True

    @model_validator(mode="before")
    @classmethod
    def _size_sets_the_shape(cls, data: Any) -> Any:
        size = data.get("size") if isinstance(data, dict) else None
        shape = SIZES.get(size) if isinstance(size, str) else None
        return data if shape is None else shape._asdict() | data

    @model_validator(mode="after")
    def _shape_is_that_of_its_size(self) -> Self:
        for field, value in SIZES[self.size]._asdict().items() if self.size else ():
            if getattr(self, field) != value:
                raise ValueError(
                    f"size {self.size} has {field} {value}, not {getattr(self, field)}: leave one of both out"
                )
        return self


class Positions(Strict):
    """Change the resolution that a checkpoint is trained for (paper 2.2, stage 3)."""

    sample_size: PositiveInt
    interpolation_scale: PositiveFloat = 1.0
    use_additional_conditions: bool | None = Field(None, description="None: as in the checkpoint.")


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


class TrainStep(Strict):
    """Options of `pixart train`; also what a `command: train` step holds."""

    command: Literal["train"] = "train"
    features: Source
    resolution: PositiveInt | None = Field(
        None, description="Which of the features' resolutions; may be left out if they have one."
    )
    model: ModelOptions | None = Field(None, description="Initialise a new model (instead of `init`).")
    init: Source | None = Field(
        None, description="Checkpoint, pipeline or file to start from: whatever convert reads."
    )
    allow_other_encoders: bool = Field(
        False, description="Train on, although other encoders made the features than those of `init`."
    )
    positions: Positions | None = Field(None, description="Change the resolution of `init`.")
    max_train_steps: PositiveInt
    global_batch_size: PositiveInt
    micro_batch_size: PositiveInt
    learning_rate: PositiveFloat = 2.0e-5
    lr_scheduler: Literal["constant", "cosine"] = "constant"
    lr_warmup_steps: NonNegativeInt = 1000
    lr_min_fraction: Fraction = Field(0.0, description="Where cosine ends, as a share of learning_rate.")
    optimizer: Annotated[AdamWOptions | MuonOptions, Field(discriminator="kind")] = AdamWOptions()
    max_grad_norm: PositiveFloat = 0.01
    ema_decay: Fraction = 0.9999
    caption_dropout: Fraction = 0.1
    uncond: Literal["learned", "empty"] | None = Field(
        None,
        description="Dropped captions become the learned embedding or the encoded empty caption; "
        "default: as in init, empty for a new model.",
    )
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    loss_weighting: Literal["uniform", "truncated_snr"] = Field(
        "uniform",
        description="truncated_snr counts the error of the clean latents by max(SNR, 1), at most 5.",
    )
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: Literal["none", "selective", "full"] = Field(
        "none",
        description="What the backward pass recomputes instead of storing: nothing, the cheap operations "
        "(norms, modulation, GELU), or whole blocks.",
    )
    seed: NonNegativeInt = 0
    checkpointing_steps: PositiveInt = 1000
    checkpoints_total_limit: PositiveInt = 2
    log_every: PositiveInt = 20

    @model_validator(mode="after")
    def _start_and_batches_are_clear(self) -> Self:
        if (self.model is None) == (self.init is None):
            raise ValueError("give either model (train from scratch) or init (a checkpoint)")
        if self.positions is not None and self.init is None:
            raise ValueError("positions changes a checkpoint: it goes with init, not with model")
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of "
                f"micro_batch_size {self.micro_batch_size}"
            )
        return self
