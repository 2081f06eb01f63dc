"""The training loop: stages 1, 2 and 3 of the paper, told apart by their recipes alone."""

import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from pixart_core.artifacts.card import card_for
from pixart_core.artifacts.checkpoint import LOG, TRANSFORMER
from pixart_core.artifacts.features import FeatureStore
from pixart_core.artifacts.publish import write_json, write_text
from pixart_core.artifacts.uncond import write_uncond
from pixart_core.diffusion.schedule import NoiseSchedule
from pixart_core.errors import UserError
from pixart_core.models.build import Transformer
from pixart_core.models.files import save_transformer
from pixart_core.progress import Progress
from pixart_core.recipe.training import AdamWOptions, TrainStep
from pixart_core.training.batches import TrainingBatch, Unconditional, draw_flips, make_batch
from pixart_core.training.ema import Ema
from pixart_core.training.initial import ReadInit, read_folder
from pixart_core.training.interrupt import StopRequests
from pixart_core.training.log import TrainingLog
from pixart_core.training.memory import keep_freed_memory
from pixart_core.training.optimizer import Optimizers, build_adamw, build_muon
from pixart_core.training.order import BatchOrder
from pixart_core.training.processes import connect, on_any, rank_slots
from pixart_core.training.schedule import learning_rate_factor
from pixart_core.training.start import start_model
from pixart_core.training.state import Counters, load_newest, save_state, saved_states
from pixart_core.training.step import batch_loss, train_step

STATES = "checkpoints"
RECIPE = "recipe.yaml"


def run_training(
    step: TrainStep, output: Path, progress: Progress, read_init: ReadInit = read_folder
) -> dict[str, Any]:
    """Train, or continue the training that `output` holds, until `step.max_train_steps`.

    Writes `transformer/` (EMA weights in diffusers' layout), `log.jsonl`, `recipe.yaml` and the states
    under `checkpoints/`; the card comes last.

    Raises:
        UserError: features, start and options do not fit together, or `output` holds another run.
        NonFiniteError: the loss is not finite; the last state is kept.
    """
    accelerator = connect()
    slots = rank_slots(step, accelerator)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    store = FeatureStore(Path(str(step.features)), step.resolution)
    start = start_model(step, store, read_init)
    model, unconditional = start.model, start.unconditional
    continue_or_refuse(step, output)
    for note in start.notes:
        progress.say(note)

    order = BatchOrder(store.buckets, step.global_batch_size, step.seed)
    progress.say(_told_of_batches(order))
    model.to(accelerator.device).train()
    model.gradient_checkpointing = step.gradient_checkpointing
    optimizers = build_optimizers(step, model)
    ema = Ema(model, step.ema_decay)
    counters, problems = load_newest(output / STATES, model, ema, optimizers)
    for problem in problems:
        progress.say(problem)
    if counters.step:
        progress.say(f"continuing {output} at step {counters.step} of {step.max_train_steps}")
    log = TrainingLog(output / LOG, counters, step, accelerator)

    loss_fn = functools.partial(
        batch_loss,
        schedule=NoiseSchedule(accelerator.device),
        prediction_type=step.prediction_type,
        weighting=step.loss_weighting,
        autocast=torch.bfloat16 if step.mixed_precision == "bf16" else None,
        micro_conditions=model.config.use_additional_conditions,
    )
    prepared: nn.Module = accelerator.prepare_model(model)
    task = f"train {output.name}"
    progress.start(task, step.max_train_steps)
    progress.advance(task, counters.step)
    started = time.perf_counter() - counters.seconds
    with StopRequests() as requests:
        while counters.step < step.max_train_steps:
            factor = learning_rate_at(step, counters.step)
            optimizers.set_factor(factor)
            batches = micro_batches(step, store, order, slots, counters.step, unconditional, model)
            stats = train_step(
                prepared,
                optimizers,
                ema,
                (batch.to(accelerator.device) for batch in batches),
                loss_fn,
                count=len(slots) // step.micro_batch_size,
                max_grad_norm=step.max_grad_norm,
            )
            counters.step += 1
            counters.seconds = time.perf_counter() - started
            note = log.record(
                counters,
                {"loss": stats.loss, "mse": stats.mse, "vb": stats.vb, "grad_norm": stats.grad_norm},
                learning_rate=step.learning_rate * factor,
            )
            progress.advance(task, 1, note)
            last = counters.step == step.max_train_steps
            stop = on_any(accelerator, requests.stop)
            if accelerator.is_main_process and (
                last or stop or counters.step % step.checkpointing_steps == 0
            ):
                save_state(
                    output / STATES, model, ema, optimizers, counters, keep=step.checkpoints_total_limit
                )
            if stop and not last:
                requests.raise_interrupt(f"stopped at step {counters.step}; run the same command to continue")
    progress.finish(task)

    if accelerator.is_main_process:
        if unconditional is not None and unconditional.keeps_mask:
            write_uncond(output, unconditional.tokens)
        details = start.facts.to_details() | ({"changed": start.changed} if start.changed else {})
        publish(step, output, model, ema, details, counters)
    if requests.stop:
        requests.raise_interrupt(f"{output} is finished")
    return {
        "output": str(output),
        "steps": counters.step,
        "images": counters.step * step.global_batch_size,
        "seconds": round(counters.seconds, 1),
        "loss": log.last_loss,
    }


def _told_of_batches(order: BatchOrder) -> str:
    epoch, buckets = order.epoch(0), order.buckets
    samples, small = sum(buckets.values()), sum(count < order.batch_size for count in buckets.values())
    told = f"{samples} samples, {len(buckets)} aspect bucket(s): "
    if small:
        larger = "the data" if samples < order.batch_size else f"{small} of {len(buckets)} aspect buckets"
        return f"{told}the batch is larger than {larger}: images repeat within a batch"
    return f"{told}{len(epoch)} batches an epoch, {epoch.carried_out} samples carried into the next"


def publish(
    step: TrainStep, output: Path, model: Transformer, ema: Ema, facts: dict[str, Any], counters: Counters
) -> None:
    """Write the finished checkpoint: EMA weights, then the card."""
    save_transformer(model.config, ema.weights, output / TRANSFORMER)
    images = counters.step * step.global_batch_size
    card_for("checkpoint", step, facts | {"steps": counters.step, "images": images}).write(output)


def continue_or_refuse(step: TrainStep, output: Path) -> None:
    """Store the resolved recipe, or compare with the one that is there.

    Raises:
        UserError: `output` was started with other options; the first differences are named.
    """
    options = card_for("checkpoint", step, {})
    current = {"options": dict(options.options), "inputs": dict(options.inputs)}
    marker = output / ".run.json"
    # Before the first state nothing can be lost: a batch that was too large for the memory may change.
    if marker.exists() and saved_states(output / STATES):
        stored = json.loads(marker.read_text())
        changed = [
            f"{key}: {stored[part].get(key)!r} before, {current[part].get(key)!r} now"
            for part in ("options", "inputs")
            for key in sorted(stored[part].keys() | current[part].keys())
            # JSON turns tuples into lists; compare what is stored.
            if stored[part].get(key) != json.loads(json.dumps(current[part].get(key)))
        ]
        if changed:
            raise UserError(
                f"{output} holds a run with other settings ({'; '.join(changed[:3])}); "
                "choose another output or restore them"
            )
        return
    write_text(output / RECIPE, yaml.safe_dump(step.model_dump(mode="json"), sort_keys=False))
    write_json(marker, current)


def micro_batches(
    step: TrainStep,
    store: FeatureStore,
    order: BatchOrder,
    slots: range,
    number: int,
    unconditional: Unconditional | None,
    model: Transformer,
) -> Iterator[TrainingBatch]:
    """This process's micro-batches of optimiser step `number`."""
    bucket, indices = order[number]
    for start in range(slots.start, slots.stop, step.micro_batch_size):
        places = range(start, start + step.micro_batch_size)
        yield make_batch(
            store.batch(
                bucket,
                indices[places.start : places.stop].tolist(),
                draw_flips(step.seed, number, places) if store.flips else None,
            ),
            places,
            seed=step.seed,
            step=number,
            scaling_factor=store.scaling_factor,
            shift_factor=store.shift_factor,
            dropout=step.caption_dropout,
            unconditional=unconditional,
            null_class=None if unconditional is not None else model.config.num_embeds_ada_norm,
        )


def build_optimizers(step: TrainStep, model: nn.Module) -> Optimizers:
    """The optimiser that the recipe asks for."""
    options = step.optimizer
    if isinstance(options, AdamWOptions):
        return build_adamw(
            model,
            learning_rate=step.learning_rate,
            betas=options.betas,
            eps=options.eps,
            weight_decay=options.weight_decay,
        )
    return build_muon(
        model,
        learning_rate=step.learning_rate,
        adamw_learning_rate=options.adamw_learning_rate or step.learning_rate,
        momentum=options.momentum,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
    )


def learning_rate_at(step: TrainStep, number: int) -> float:
    """Learning-rate factor of optimiser step `number`."""
    return learning_rate_factor(
        number,
        scheduler=step.lr_scheduler,
        warmup_steps=step.lr_warmup_steps,
        max_train_steps=step.max_train_steps,
        min_fraction=step.lr_min_fraction,
    )
