"""How fast a training goes: images a second, waiting for data, FLOP/s, what is left, what it costs."""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from time import perf_counter
from typing import Any

import torch

from pixart_core.models.config import TransformerConfig
from pixart_core.recipe.gpus import Gpu, gpu_named
from pixart_core.recipe.model_counts import Interface, training_flops
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.training.batches import TrainingBatch
from pixart_core.training.state import Counters

NEWER = 0.3  # weight of the last row in the time that a step is expected to take


class Pace:
    """Measures the steps of this process; `row` gives means since the row before.

    Nothing here waits for a GPU: what a step queues counts in the step that waits for it, and every step
    waits once, when it looks whether the loss is finite.
    """

    def __init__(
        self, step: TrainStep, config: TransformerConfig, device: torch.device, processes: int
    ) -> None:
        self.step = step
        self.config = config
        self.processes = processes
        routing = step.token_routing
        self.routed_blocks = 0 if routing is None else len(routing.blocks(config.num_layers))
        self.gpu = _gpu(device)
        self.seconds_a_step: float | None = None  # validation, saving and all
        self._steps = 0
        self._in_steps = self._waiting = 0.0
        self._flops = 0
        self._begin = perf_counter()

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """Around an optimiser step."""
        begin = perf_counter()
        yield
        self._in_steps += perf_counter() - begin
        self._steps += 1

    def waiting(self, batches: Iterable[TrainingBatch]) -> Iterator[TrainingBatch]:
        """The same batches; the time until each is there counts as waiting for data."""
        rest = iter(batches)
        while True:
            begin = perf_counter()
            batch = next(rest, None)
            self._waiting += perf_counter() - begin
            if batch is None:
                return
            self._flops += batch_flops(self.config, batch, self.routed_blocks)
            yield batch

    def row(self, counters: Counters) -> dict[str, float]:
        """What goes into a log row under `pace`, to four digits; begins the next row.

        Keys:
            images_per_second: of all processes, in the time spent in optimiser steps.
            data_wait: share of that time spent waiting for batches.
            tflops: of this device, 1e12 a second, those of the model counted (see `training_flops`).
            mfu: share of the GPU's 16-bit peak that `tflops` is; only for GPUs of the table.
            eta_seconds: until the last step, validation and saving included.
            usd: of all sittings so far; only with `price`.
        """
        now = perf_counter()
        row: dict[str, float] = {}
        if self._steps and self._in_steps > 0:
            latest = (now - self._begin) / self._steps
            before = latest if self.seconds_a_step is None else self.seconds_a_step
            self.seconds_a_step = before + NEWER * (latest - before)
            per_second = self._flops / self._in_steps
            row = {
                "images_per_second": self._steps * self.step.global_batch_size / self._in_steps,
                "data_wait": self._waiting / self._in_steps,
                "tflops": per_second / 1e12,
                "eta_seconds": self.seconds_a_step * (self.step.max_train_steps - counters.step),
            }
            if self.gpu is not None:
                row["mfu"] = per_second / self.gpu.flops
        if self.step.price is not None:
            row["usd"] = self.step.price * self.processes * counters.seconds / 3600
        self._steps, self._flops, self._in_steps, self._waiting = 0, 0, 0.0, 0.0
        self._begin = now
        return {name: float(f"{value:.4g}") for name, value in row.items()}


def batch_flops(config: TransformerConfig, batch: TrainingBatch, routed_blocks: int = 0) -> int:
    """FLOPs of the forward and backward pass of a batch, its captions as long as they are padded here.

    Args:
        routed_blocks: how many take the batch's `kept_tokens` alone, if it has any.
    """
    count, _, height, width = batch.latents.shape
    tokens = (height // config.patch_size) * (width // config.patch_size)
    kept = batch.kept_tokens
    routed = (0, 0) if kept is None else (routed_blocks, kept.shape[1])
    return count * _image_flops(config, tokens, 0 if batch.text is None else batch.text.shape[1], routed)


@functools.lru_cache(maxsize=1024)
def _image_flops(config: TransformerConfig, tokens: int, text_tokens: int, routed: tuple[int, int]) -> int:
    interface = Interface(config.in_channels, config.caption_channels, text_tokens)
    return training_flops(counted_model(config), tokens, interface, routed)


def counted_model(config: TransformerConfig) -> ModelOptions:
    """The options of a model of this config, which the counts of the planner take."""
    return ModelOptions(
        size=None,
        conditioning=config.conditioning,
        modulation=config.modulation,
        num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        attention_head_dim=config.attention_head_dim,
        patch_size=config.patch_size,
        sample_size=config.sample_size,
        use_additional_conditions=config.use_additional_conditions,
        learned_variance=config.learned_variance,
    )


def _gpu(device: torch.device) -> Gpu | None:
    return gpu_named(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def note(row: Mapping[str, Any]) -> str:
    """A log row as one line: `loss 0.1234, lr 2e-05, 812 images/s, ...`."""
    pace = row.get("pace", {})
    parts = [f"loss {row['loss']:.4f}", f"lr {row['lr']:.3g}"]
    if "images_per_second" in pace:
        parts.append(f"{pace['images_per_second']:,.4g} images/s")
        parts.append(f"data wait {pace['data_wait']:.0%}")
        parts.append(f"MFU {pace['mfu']:.1%}" if "mfu" in pace else f"{pace['tflops']:.3g} TFLOP/s")
    if "usd" in pace:
        parts.append(f"{pace['usd']:,.2f} USD")
    if pace.get("eta_seconds"):
        parts.append(f"{duration(pace['eta_seconds'])} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """`4 d 3 h`, `3 h 12 min`, `12 min`, `8 s`."""
    minutes = round(seconds / 60)
    if minutes >= 48 * 60:
        return f"{minutes // 1440} d {minutes % 1440 // 60} h"
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"
