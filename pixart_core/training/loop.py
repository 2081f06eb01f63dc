"""The training loop: stages 1, 2 and 3 of the paper, told apart by their recipes alone."""

import gc
import time
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from pixart_core.artifacts.card import CARD, card_for
from pixart_core.artifacts.checkpoint import LOG, TRANSFORMER
from pixart_core.artifacts.lock import only_launch
from pixart_core.artifacts.uncond import write_uncond
from pixart_core.errors import UnfinishedError
from pixart_core.models.files import save_transformer
from pixart_core.progress import Progress
from pixart_core.recipe.training import TrainStep
from pixart_core.training.budget import Clock
from pixart_core.training.certificate import fitting_certificate
from pixart_core.training.initial import ReadInit, read_folder
from pixart_core.training.interrupt import StopRequests
from pixart_core.training.log import TrainingLog
from pixart_core.training.pace import note
from pixart_core.training.processes import connect, failing_together, on_any
from pixart_core.training.recorded import finished_result
from pixart_core.training.recover import RolledBackError, do_step, forget_skipped
from pixart_core.training.run import Run, open_run
from pixart_core.training.schedule import learning_rate_at
from pixart_core.training.told_once import told_once
from pixart_core.training.validation_images import OpenPainter
from pixart_core.training.watchers import watchers_of
from pixart_core.training.witness import passing

LOGGED = ("loss", "mse", "vb", "grad_norm")


@told_once
def run_training(
    step: TrainStep,
    output: Path,
    progress: Progress,
    read_init: ReadInit = read_folder,
    open_painter: OpenPainter | None = None,
) -> dict[str, Any]:
    """Train, or continue the training that `output` holds, until `step.max_train_steps`.

    Writes `transformer/` (EMA weights in diffusers' layout), `log.jsonl`, `recipe.yaml`, `history.jsonl` and
    the states under `checkpoints/`; the card comes last.

    Raises:
        UserError: features, start and options do not fit together, `output` holds another run, or another
            process is training there.
        NonFiniteError: the loss is not finite, more often than the recipe allows; the last state is kept.
        UnfinishedError: the time is over, or the system asked for the end (SIGTERM, SIGUSR1); all is saved.
        KeyboardInterrupt: Ctrl-C; all is saved.
    """
    # The first process holds the folder for all; they are connected, so that they notice if it may not.
    first = connect().is_main_process
    with only_launch(output, progress.say) if first else nullcontext():
        if (finished := finished_result(step, output)) is not None:
            done = f"{output} is finished ({finished['steps']} steps): nothing to do"
            progress.say(f"{done}; --output {output} with a larger max_train_steps continues it")
            return finished
        again: set[int] = set()
        while True:
            try:
                return _train(step, output, progress, read_init, open_painter, again)
            except RolledBackError as error:
                progress.say(f"{error}; going back to the last state, the steps since are done again")
                again.add(error.step)
            gc.collect()  # the run holds itself in circles, and the next one wants its memory


def _train(
    step: TrainStep,
    output: Path,
    progress: Progress,
    read_init: ReadInit,
    open_painter: OpenPainter | None,
    again: Collection[int],
) -> dict[str, Any]:
    run = open_run(step, output, progress, read_init)
    run.again = again
    forget_skipped(run)
    log = TrainingLog(output / LOG, run.counters, step, run.accelerator)
    watchers = watchers_of(run, open_painter)
    for watcher in watchers:
        watcher.begin(run)
    task = f"train {output.name}"
    progress.start(task, step.max_train_steps)
    progress.advance(task, run.counters.step)
    started, clock = time.perf_counter() - run.counters.seconds, Clock(step)
    with StopRequests() as requests, run.ahead:
        while not run.done:
            try:
                with run.pace.stepping():
                    stats = do_step(run)
            except RolledBackError as error:
                interrupted, asked = on_any(run.accelerator, requests.interrupted, requests.asked)
                if interrupted or asked:  # nobody would hear of it when the run is opened again
                    told = f"{error}; ended as asked, run the same command to go back to the last state"
                    raise (KeyboardInterrupt if interrupted else UnfinishedError)(told) from error
                raise
            run.counters.step += 1
            passing("updated", run.counters.step)
            run.counters.seconds = time.perf_counter() - started
            row = log.record(
                run.counters,
                {name: getattr(stats, name) for name in LOGGED if not stats.lost},
                learning_rate=step.learning_rate * learning_rate_at(step, run.counters.step - 1),
                pace=run.pace,
            )
            passing("logged", run.counters.step)
            for watcher in watchers:
                watcher.after_step(run, stats, row)
            progress.advance(task, 1, "" if row is None else note(row))
            clock.stepped()
            interrupted, asked, over, due = on_any(
                run.accelerator, requests.interrupted, requests.asked, clock.is_over, clock.asks_to_save
            )
            stop = interrupted or asked or over
            if run.done or stop or due or run.counters.step % step.checkpointing_steps == 0:
                run.save()
                clock.saved()
            if stop and not run.done:
                _end_early(run, interrupted=interrupted, asked=asked)
    progress.finish(task)
    for watcher in watchers:
        watcher.end(run)

    with failing_together(run.accelerator):
        publish(run)
    if requests.interrupted:
        raise KeyboardInterrupt(f"{output} is finished")
    if requests.asked:
        raise UnfinishedError(f"{output} is finished; ended as asked")
    return {
        "output": str(output),
        "steps": run.counters.step,
        "images": run.counters.step * step.global_batch_size,
        "seconds": round(run.counters.seconds, 1),
        "loss": log.last_loss,
    }


def _end_early(run: Run, *, interrupted: bool, asked: bool) -> NoReturn:
    step = run.step
    where = f"step {run.counters.step} of {step.max_train_steps}; run the same command to continue"
    if interrupted:
        raise KeyboardInterrupt(f"stopped at {where}")
    why = "as asked" if asked else f"in time for max_train_time {step.max_train_time}"
    raise UnfinishedError(f"saved and ended {why} at {where}")


def publish(run: Run) -> None:
    """Write the finished checkpoint: EMA weights, then the card; all processes come here."""
    start, output, first = run.start, run.output, run.accelerator.is_main_process
    averages = {name: average.cpu() for name, average in run.ema.whole() if first}
    if not first:
        return
    if start.unconditional is not None and start.unconditional.keeps_mask:
        write_uncond(output, start.unconditional.tokens)
    facts = start.facts.to_details() | ({"changed": start.changed} if start.changed else {})
    (output / CARD).unlink(missing_ok=True)  # of a shorter training that this one continued
    save_transformer(run.model.config, averages, output / TRANSFORMER)
    passing("publishing", run.counters.step)
    done: dict[str, Any] = {
        "steps": run.counters.step,
        "images": run.counters.step * run.step.global_batch_size,
    }
    if (certificate := fitting_certificate(output, run.step)) is not None:
        done["resume_certificate"] = certificate
    card_for("checkpoint", run.step, facts | done).write(output)
