"""A training while it runs: its parts, opened from the recipe and from what the output folder holds."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from pixart_core.artifacts.features import FeatureStore
from pixart_core.diffusion.loss import LossTerms
from pixart_core.diffusion.schedule import NoiseSchedule
from pixart_core.diffusion.weighting import Weighting
from pixart_core.models.build import Transformer
from pixart_core.models.compiling import check_compiler, compile_blocks
from pixart_core.progress import Progress
from pixart_core.recipe.sameness import Changes
from pixart_core.recipe.training import TrainStep
from pixart_core.training.ahead import ReadAhead
from pixart_core.training.batches import TrainingBatch, pinned
from pixart_core.training.ema import Ema
from pixart_core.training.feed import micro_batches
from pixart_core.training.initial import ReadInit
from pixart_core.training.memory import keep_freed_memory
from pixart_core.training.optimizer import Optimizers, build_optimizers
from pixart_core.training.order import BatchOrder
from pixart_core.training.pace import Pace
from pixart_core.training.parallel import parallel_mode, refuse_with_fsdp2, spread
from pixart_core.training.processes import connect, failing_together, rank_slots
from pixart_core.training.recorded import continue_or_refuse, record_sitting
from pixart_core.training.start import Start, start_model
from pixart_core.training.state import Counters, load_newest, save_state
from pixart_core.training.step import batch_loss

STATES = "checkpoints"

LossFn = Callable[[nn.Module, TrainingBatch], LossTerms]


@dataclasses.dataclass
class Run:
    """The parts of a training.

    Attributes:
        slots: places of the global batch that this process computes.
        model: the transformer itself; `prepared` is what is called, as accelerate wraps it.
        counters: where the run is; the only part that is replaced while it runs (see `reload`).
        ahead: `batches_of` one step after the other, prepared while the step before runs.
        again: steps (from 0) that failed before and are done again (`recover`).
    """

    step: TrainStep
    output: Path
    progress: Progress
    accelerator: Accelerator
    slots: range
    store: FeatureStore
    order: BatchOrder
    start: Start
    model: Transformer
    prepared: nn.Module
    optimizers: Optimizers
    ema: Ema
    loss_fn: LossFn
    pace: Pace
    counters: Counters
    again: Collection[int] = ()
    ahead: ReadAhead[TrainingBatch] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        # On a CPU the step has use for every core: with a thread beside it, it took twice as long on two.
        threaded = self.accelerator.device.type != "cpu"
        self.ahead = ReadAhead(self.batches_of, self.step.max_train_steps, threaded=threaded)

    @property
    def states(self) -> Path:
        """Folder of the saved states."""
        return self.output / STATES

    @property
    def done(self) -> bool:
        """Whether the last step is done."""
        return self.counters.step >= self.step.max_train_steps

    @property
    def micro_batch_size(self) -> int:
        """Images that this process computes at once."""
        return self.step.micro_batch_of(self.accelerator.num_processes)

    @property
    def micro_batches_per_step(self) -> int:
        """Forward passes of this process in an optimiser step."""
        return len(self.slots) // self.micro_batch_size

    def micro_batches(self) -> Iterator[TrainingBatch]:
        """This process's micro-batches of the next optimiser step, on the CPU."""
        return self.batches_of(self.counters.step)

    def batches_of(self, number: int) -> Iterator[TrainingBatch]:
        """This process's micro-batches of optimiser step `number`, on the CPU, ready for the device."""
        batches = micro_batches(
            self.step,
            self.store,
            self.order,
            self.slots,
            number,
            unconditional=self.start.unconditional,
            null_class=self.model.config.num_embeds_ada_norm,
            patch_size=self.model.config.patch_size,
        )
        device = self.accelerator.device
        return pinned(batches, device) if device.type == "cuda" else batches

    def save(self) -> None:
        """Publish the state of now (see `save_state`); all processes come here."""
        with failing_together(self.accelerator):
            save_state(
                self.states,
                self.model,
                self.ema,
                self.optimizers,
                self.counters,
                keep=self.step.checkpoints_total_limit,
                keep_every=self.step.checkpoints_keep_every,
                accelerator=self.accelerator,
            )

    def reload(self) -> None:
        """Go to the newest readable state that the output folder holds, or stay at the start."""
        self.counters, problems = load_newest(
            self.states, self.model, self.ema, self.optimizers, self.accelerator
        )
        for problem in problems:
            self.progress.say(problem)


def open_run(step: TrainStep, output: Path, progress: Progress, read_init: ReadInit) -> Run:
    """Bring together what `step` asks for, at the step where `output` left off.

    Raises:
        UserError: features, start and options do not fit together, or `output` holds another run.
    """
    accelerator = connect()
    slots = rank_slots(step, accelerator)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    mode = parallel_mode(step.distributed, accelerator)
    refuse_with_fsdp2(mode, step.optimizer.kind)
    with failing_together(accelerator):
        store = FeatureStore(Path(str(step.features)), step.resolution)
        start = start_model(step, store, read_init)
        if step.token_routing is not None:
            start.model.routed_blocks = step.token_routing.blocks(start.model.config.num_layers)
        if step.compile:
            # torch compiles a function 8 times at most, and a chain trains several models in one process.
            torch.compiler.reset()
            check_compiler(accelerator.device)
            compile_blocks(start.model)
    changed: Changes = {}
    with failing_together(accelerator):
        if accelerator.is_main_process:
            changed = continue_or_refuse(step, output, output / STATES, progress)
    for note in start.notes:
        progress.say(note)
    order = BatchOrder(store.buckets, step.global_batch_size, step.seed)
    progress.say(_told_of_batches(order))

    model = start.model
    model.train()
    model.gradient_checkpointing = step.gradient_checkpointing
    run = Run(
        step=step,
        output=output,
        progress=progress,
        accelerator=accelerator,
        slots=slots,
        store=store,
        order=order,
        start=start,
        model=model,
        prepared=spread(model, accelerator, mode),
        optimizers=build_optimizers(step, model),
        ema=Ema(model, step.ema_decay, offload=step.offload_ema and accelerator.device.type != "cpu"),
        loss_fn=_loss_fn(step, model, accelerator.device),
        pace=Pace(step, model.config, accelerator.device, accelerator.num_processes),
        counters=Counters(),
    )
    run.reload()
    if run.counters.step:
        progress.say(f"continuing {output} at step {run.counters.step} of {step.max_train_steps}")
    with failing_together(accelerator):
        if accelerator.is_main_process:
            record_sitting(step, output, changed, run.counters.step, accelerator)
    return run


def _loss_fn(step: TrainStep, model: Transformer, device: torch.device) -> LossFn:
    return functools.partial(
        batch_loss,
        schedule=NoiseSchedule(device),
        prediction_type=step.prediction_type,
        weighting=Weighting(step.loss_weighting, step.snr_gamma),
        autocast=torch.bfloat16 if step.mixed_precision == "bf16" else None,
        micro_conditions=model.config.use_additional_conditions,
    )


def _told_of_batches(order: BatchOrder) -> str:
    epoch, buckets = order.epoch(0), order.buckets
    samples, small = sum(buckets.values()), sum(count < order.batch_size for count in buckets.values())
    told = f"{samples} samples, {len(buckets)} aspect bucket(s): "
    if small:
        larger = "the data" if samples < order.batch_size else f"{small} of {len(buckets)} aspect buckets"
        return f"{told}the batch is larger than {larger}: images repeat within a batch"
    return f"{told}{len(epoch)} batches an epoch, {epoch.carried_out} samples carried into the next"
