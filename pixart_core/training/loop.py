"""The training loop: stages 1, 2 and 3 of the paper, told apart by their recipes alone."""

import time
from pathlib import Path
from typing import Any

from pixart_core.artifacts.card import card_for
from pixart_core.artifacts.checkpoint import LOG, TRANSFORMER
from pixart_core.artifacts.uncond import write_uncond
from pixart_core.models.files import save_transformer
from pixart_core.progress import Progress
from pixart_core.recipe.training import TrainStep
from pixart_core.training.initial import ReadInit, read_folder
from pixart_core.training.interrupt import StopRequests
from pixart_core.training.log import TrainingLog
from pixart_core.training.pace import note
from pixart_core.training.processes import failing_together, on_any
from pixart_core.training.run import Run, open_run
from pixart_core.training.schedule import learning_rate_at
from pixart_core.training.step import StepStats, train_step
from pixart_core.training.told_once import told_once
from pixart_core.training.validation_images import OpenPainter
from pixart_core.training.watchers import watchers_of


@told_once
def run_training(
    step: TrainStep,
    output: Path,
    progress: Progress,
    read_init: ReadInit = read_folder,
    open_painter: OpenPainter | None = None,
) -> dict[str, Any]:
    """Train, or continue the training that `output` holds, until `step.max_train_steps`.

    Writes `transformer/` (EMA weights in diffusers' layout), `log.jsonl`, `recipe.yaml` and the states
    under `checkpoints/`; the card comes last.

    Raises:
        UserError: features, start and options do not fit together, or `output` holds another run.
        NonFiniteError: the loss is not finite; the last state is kept.
    """
    run = open_run(step, output, progress, read_init)
    log = TrainingLog(output / LOG, run.counters, step, run.accelerator)
    watchers = watchers_of(run, open_painter)
    for watcher in watchers:
        watcher.begin(run)
    task = f"train {output.name}"
    progress.start(task, step.max_train_steps)
    progress.advance(task, run.counters.step)
    started = time.perf_counter() - run.counters.seconds
    with StopRequests() as requests:
        while not run.done:
            with run.pace.stepping():
                stats = one_step(run)
            run.counters.step += 1
            run.counters.seconds = time.perf_counter() - started
            row = log.record(
                run.counters,
                {"loss": stats.loss, "mse": stats.mse, "vb": stats.vb, "grad_norm": stats.grad_norm},
                learning_rate=step.learning_rate * learning_rate_at(step, run.counters.step - 1),
                pace=run.pace,
            )
            for watcher in watchers:
                watcher.after_step(run, stats, row)
            progress.advance(task, 1, "" if row is None else note(row))
            stop = on_any(run.accelerator, requests.stop)
            if run.done or stop or run.counters.step % step.checkpointing_steps == 0:
                run.save()
            if stop and not run.done:
                requests.raise_interrupt(
                    f"stopped at step {run.counters.step}; run the same command to continue"
                )
    progress.finish(task)
    for watcher in watchers:
        watcher.end(run)

    with failing_together(run.accelerator):
        publish(run)
    if requests.stop:
        requests.raise_interrupt(f"{output} is finished")
    return {
        "output": str(output),
        "steps": run.counters.step,
        "images": run.counters.step * step.global_batch_size,
        "seconds": round(run.counters.seconds, 1),
        "loss": log.last_loss,
    }


def one_step(run: Run) -> StepStats:
    """Optimiser step `run.counters.step`: learning rate, gradients, update, average."""
    run.optimizers.set_factor(learning_rate_at(run.step, run.counters.step))
    return train_step(
        run.prepared,
        run.optimizers,
        run.ema,
        (batch.to(run.accelerator.device) for batch in run.pace.waiting(run.micro_batches())),
        run.loss_fn,
        count=run.micro_batches_per_step,
        max_grad_norm=run.step.max_grad_norm,
    )


def publish(run: Run) -> None:
    """Write the finished checkpoint: EMA weights, then the card; all processes come here."""
    start, output, first = run.start, run.output, run.accelerator.is_main_process
    averages = {name: average.cpu() for name, average in run.ema.whole() if first}
    if not first:
        return
    if start.unconditional is not None and start.unconditional.keeps_mask:
        write_uncond(output, start.unconditional.tokens)
    facts = start.facts.to_details() | ({"changed": start.changed} if start.changed else {})
    save_transformer(run.model.config, averages, output / TRANSFORMER)
    done = {"steps": run.counters.step, "images": run.counters.step * run.step.global_batch_size}
    card_for("checkpoint", run.step, facts | done).write(output)
