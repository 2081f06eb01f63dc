"""Options of `pixart train`: features, start, optimiser, the run."""

from typing import ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pixart_core.recipe.base import Fraction, Source, Strict
from pixart_core.recipe.failing import FAILING, NonFiniteOptions
from pixart_core.recipe.model_options import ModelOptions, Positions
from pixart_core.recipe.optimizers import AdamWOptions, Decay, MuonOptions, OptimizerOptions
from pixart_core.recipe.saving import SAVING, Duration
from pixart_core.recipe.token_routing import TokenRouting
from pixart_core.recipe.watching import WATCHING, Trackers, ValidationOptions

__all__ = ["AdamWOptions", "ModelOptions", "MuonOptions", "Positions", "TrainStep", "ValidationOptions"]


class TrainStep(Strict):
    """Options of `pixart train`; also what a `command: train` step holds."""

    unrecorded: ClassVar[frozenset[str]] = WATCHING | SAVING | FAILING | {"processes"}
    rounding: ClassVar[frozenset[str]] = frozenset(
        {"micro_batch_size", "gradient_checkpointing", "offload_ema", "distributed", "compile"}
    )

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
    micro_batch_size: PositiveInt = Field(
        description="Images that a process computes at once; fewer if its share of the batch asks for it."
    )
    learning_rate: PositiveFloat = 2.0e-5
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    lr_warmup_steps: NonNegativeInt = Field(1000, description="Optimiser steps, however many processes.")
    lr_min_fraction: Fraction = Field(
        0.0, description="Where linear and cosine end, as a share of learning_rate."
    )
    optimizer: OptimizerOptions = Field(
        AdamWOptions(),
        description="kind: adamw, adamw8bit, came or muon, each with options of its own: "
        "optimizer.kind=muon, 'optimizer={kind: came}'.",
    )
    max_grad_norm: PositiveFloat = 0.01
    ema_decay: Decay = Field(0.9999, description="0 publishes the weights as trained.")
    offload_ema: bool = Field(
        False, description="Keep the averages in the main memory instead of the GPU's (4 bytes a parameter)."
    )
    caption_dropout: Fraction = 0.1
    uncond: Literal["learned", "empty"] | None = Field(
        None,
        description="Dropped captions become the learned embedding or the encoded empty caption; "
        "default: as in init, empty for a new model.",
    )
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    loss_weighting: Literal["uniform", "min_snr", "truncated_snr"] = Field(
        "uniform",
        description="What an error of the clean latents counts: min_snr min(SNR, snr_gamma), truncated_snr "
        "max(SNR, 1) but at most snr_gamma; with uniform each prediction's own error counts the same.",
    )
    snr_gamma: PositiveFloat = Field(5.0, description="Bound of loss_weighting min_snr and truncated_snr.")
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: Literal["none", "selective", "full"] = Field(
        "none",
        description="What the backward pass recomputes instead of storing: nothing, the cheap operations "
        "(norms, modulation, GELU), or whole blocks.",
    )
    processes: PositiveInt | None = Field(
        None,
        description="Processes that `pixart train` starts on this machine; default: one a GPU, one on a CPU.",
    )
    compile: bool = Field(
        False,
        description="Compile the blocks (torch.compile): for GPUs, where it saves much; needs a compiler. "
        "The first steps take longer.",
    )
    distributed: Literal["auto", "ddp", "fsdp2"] = Field(
        "auto",
        description="Several processes: each has the model (ddp) or a part of it (fsdp2); auto: ddp, unless "
        "accelerate's configuration says FSDP2.",
    )
    token_routing: TokenRouting | None = Field(
        None, description="Cheaper steps: part of the tokens skips the blocks in the middle (TREAD)."
    )
    non_finite: NonFiniteOptions = NonFiniteOptions.model_validate({})
    seed: NonNegativeInt = 0
    checkpointing_steps: PositiveInt = 1000
    checkpointing_minutes: PositiveFloat | None = Field(
        None, description="Save also when the last state is as old as this."
    )
    max_train_time: Duration | None = Field(
        None,
        description="Save and end (exit code 75) in time, counted from the start of the command: 3h50m, 90m, "
        "minutes, or 1-12:00:00 as SLURM writes it.",
    )
    checkpoints_total_limit: PositiveInt = 2
    checkpoints_keep_every: PositiveInt | None = Field(
        None, description="Keep besides the states of updates that are multiples of this."
    )
    log_every: PositiveInt = 20
    validation: ValidationOptions | None = Field(
        None, description="Loss by timestep on fixed noise, and pictures, every so many updates."
    )
    report_to: Trackers = Field((), description="Where log rows go besides log.jsonl, for instance [csv].")
    tracker_project_name: str = Field("pixart", min_length=1, description="Project of the trackers.")
    page: bool = Field(True, description="Keep training.html up to date: curves and pictures.")
    price: NonNegativeFloat | None = Field(
        None, description="USD per GPU-hour (without a GPU: per hour of a process): shows what was spent."
    )

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
        if self.snr_gamma != 5.0 and self.loss_weighting == "uniform":
            raise ValueError("snr_gamma bounds loss_weighting min_snr and truncated_snr; it is uniform")
        if self.snr_gamma < 1.0 and self.loss_weighting == "truncated_snr":
            raise ValueError("snr_gamma is below 1, which truncated_snr does not go under; choose min_snr")
        return self

    def micro_batch_of(self, processes: int) -> int:
        """Images at once in each of `processes`: the largest part of its share up to micro_batch_size.

        Raises:
            ValueError: the batch does not divide by the processes.
        """
        share, rest = divmod(self.global_batch_size, processes)
        if rest or not share:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of {processes} processes"
            )
        return next(size for size in range(self.micro_batch_size, 0, -1) if share % size == 0)
