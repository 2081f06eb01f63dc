"""Validation loss by timestep: equal images, noise and timesteps every time; nothing of the run changes."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pixart_core.artifacts.features import FeatureStore
from pixart_core.diffusion.schedule import NUM_TIMESTEPS
from pixart_core.errors import PixartError, UserError
from pixart_core.recipe.watching import ValidationOptions
from pixart_core.seeding import derive_seed
from pixart_core.training.averaged import evaluating
from pixart_core.training.batches import TrainingBatch, make_batch
from pixart_core.training.log import append_row, forget_after
from pixart_core.training.processes import all_told, failing_together
from pixart_core.training.run import Run
from pixart_core.training.start import check_fit
from pixart_core.training.step import StepStats

VALIDATION = "validation.jsonl"


@dataclasses.dataclass(frozen=True)
class FixedBatch:
    """Samples of one bucket.

    Attributes:
        first: number of the first among all samples of the validation; their draws derive from it.
        indices: within the bucket.
    """

    bucket: tuple[int, int]
    first: int
    indices: Sequence[int]


class ValidationLoss:
    """Watcher: the loss of fixed samples in every band of timesteps, into `validation.jsonl`.

    Samples, their batches and their draws derive from `validation.seed` alone. Batches and bands are shared
    out over the processes: every number of processes gives the same rows.

    Attributes:
        edges: where the bands begin, and 1000.
        rows: those of the newest validation.
    """

    def __init__(self, options: ValidationOptions) -> None:
        self.options = options
        self.rows: list[dict[str, Any]] = []
        self.edges = [NUM_TIMESTEPS * band // options.bands for band in range(options.bands + 1)]

    def begin(self, run: Run) -> None:
        """Choose the samples; forget validations of steps that are done again.

        Raises:
            UserError: `options.features` cannot be used with this model.
        """
        self.path = run.output / VALIDATION
        self.store = run.store
        with failing_together(run.accelerator):
            if self.options.features is not None:
                self.store = self._own_store(run, Path(str(self.options.features)))
        self.batches = fixed_batches(self.store.buckets, self.options, run.step.micro_batch_size)
        self.samples = sum(len(batch.indices) for batch in self.batches)
        if run.accelerator.is_main_process:
            forget_after(self.path, run.counters.step)

    @staticmethod
    def _own_store(run: Run, folder: Path) -> FeatureStore:
        try:
            store = FeatureStore(folder, run.step.resolution)
            check_fit(run.model.config, store)
        except UserError as error:
            raise UserError(f"validation.features: {error}") from error
        return store

    def after_step(self, run: Run, stats: StepStats, row: Mapping[str, Any] | None) -> None:
        """Validate, if it is time."""
        self.rows = []
        if run.counters.step % self.options.every and not run.done:
            return
        for weights in ("ema", "raw") if self.options.raw_weights else ("ema",):
            losses = self._losses(run, weights)
            bands = [float(loss) for loss in losses.mean(0)]
            self.rows.append(
                {
                    "step": run.counters.step,
                    "weights": weights,
                    "loss": float(losses.mean()),
                    "bands": bands,
                    "edges": self.edges,
                    "samples": self.samples,
                }
            )
        told = ", ".join(f"{row['loss']:.4f} ({row['weights']})" for row in self.rows)
        run.progress.say(f"step {run.counters.step}: validation loss {told}")
        if run.accelerator.is_main_process:
            for written in self.rows:
                append_row(self.path, written)

    def end(self, run: Run) -> None:
        """Nothing is left to do."""

    def _losses(self, run: Run, weights: str) -> Float[Tensor, "samples bands"]:
        """Loss of every sample in every band, float64; equal on all processes.

        Raises:
            PixartError: it failed on some process.
        """
        total = torch.zeros(self.samples, self.options.bands, dtype=torch.float64)
        failure: str | None = None
        try:
            with evaluating(run.model, run.ema if weights == "ema" else None):
                self._share(run, total)
        except Exception as error:
            failure = str(error) or type(error).__name__
        for told in all_told(run.accelerator, failure):
            if told is not None:  # in one process or another: all go on together
                raise PixartError(told)
        if run.accelerator.num_processes == 1:
            return total
        # The others hold zeros where one holds a loss: this sum rounds nothing.
        return run.accelerator.reduce(total.to(run.accelerator.device), "sum").cpu()

    def _share(self, run: Run, losses: Float[Tensor, "samples bands"]) -> None:
        """Fill in this process's share of the losses."""
        work = list(itertools.product(self.batches, range(self.options.bands)))
        world, rank = run.accelerator.num_processes, run.accelerator.process_index
        for start in range(0, len(work), world):
            # Sharded models need all processes in every pass: one without work repeats the last piece.
            batch, band = work[min(start + rank, len(work) - 1)]
            values = self._batch_loss(run, run.model, batch, band)
            if start + rank < len(work):
                losses[batch.first : batch.first + len(batch.indices), band] = values

    def _batch_loss(self, run: Run, model: nn.Module, batch: FixedBatch, band: int) -> Float[Tensor, " b"]:
        drawn = self.training_batch(run, batch, band).to(run.accelerator.device)
        return run.loss_fn(model, drawn).total.double().cpu()

    def training_batch(self, run: Run, batch: FixedBatch, band: int) -> TrainingBatch:
        """The samples of `batch` with their own noise and timesteps of `band`; no caption is dropped."""
        start = run.start
        drawn = make_batch(
            self.store.batch(batch.bucket, list(batch.indices)),
            range(batch.first, batch.first + len(batch.indices)),
            seed=derive_seed(self.options.seed, "validation"),
            step=band,
            scaling_factor=self.store.scaling_factor,
            shift_factor=self.store.shift_factor,
            dropout=0.0,
            unconditional=start.unconditional,
            null_class=None if start.unconditional is not None else run.model.config.num_embeds_ada_norm,
        )
        low, high = self.edges[band : band + 2]
        timesteps = low + drawn.timesteps * (high - low) // NUM_TIMESTEPS
        return dataclasses.replace(drawn, timesteps=timesteps)


def fixed_batches(
    buckets: Mapping[tuple[int, int], int], options: ValidationOptions, size: int
) -> list[FixedBatch]:
    """Which samples are validated on: drawn from all buckets alike, in batches of one bucket each."""
    return list(_fixed_batches(buckets, options, size))


def _fixed_batches(
    buckets: Mapping[tuple[int, int], int], options: ValidationOptions, size: int
) -> Iterator[FixedBatch]:
    total = sum(buckets.values())
    drawn = np.random.Generator(np.random.Philox(derive_seed(options.seed, "validation samples")))
    chosen = np.sort(drawn.choice(total, min(options.samples, total), replace=False))
    begin = first = 0
    for bucket, count in sorted(buckets.items()):
        inside = chosen[(begin <= chosen) & (chosen < begin + count)] - begin
        begin += count
        for start in range(0, len(inside), size):
            indices = inside[start : start + size].tolist()
            yield FixedBatch(bucket, first, indices)
            first += len(indices)
