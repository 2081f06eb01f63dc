"""Steps that fail: a loss that is not finite, a batch that does not fit the memory."""

import json
from pathlib import Path
from typing import Any, NoReturn

import torch

from pixart_core.artifacts.publish import write_text
from pixart_core.errors import PixartError, UserError
from pixart_core.training.log import append_row, read_rows
from pixart_core.training.out_of_memory import is_out_of_memory, what_fits
from pixart_core.training.processes import all_told, on_any
from pixart_core.training.run import Run
from pixart_core.training.schedule import learning_rate_at
from pixart_core.training.step import LostStepError, NonFiniteError, StepStats, train_step
from pixart_core.training.witness import witnessed

FAILURES = "failures.jsonl"
NAMED = 8  # samples that a message names; all are in failures.jsonl


class RolledBackError(Exception):
    """The run goes back to its newest state, because of optimiser step `step` (from 0)."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


def do_step(run: Run) -> StepStats:
    """Do the next optimiser step; one that is not finite is dealt with as the recipe says.

    Raises:
        NonFiniteError: the recipe says stop, or too many steps were skipped.
        RolledBackError: the run shall be opened again at its newest state.
        UserError: the batch does not fit the memory; names a setting that fits.
    """
    try:
        stats = _step(run)
    except LostStepError as error:
        return _lose(run, error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(what_fits(run)) from error
    run.counters.lost_in_a_row = 0
    return stats


def forget_skipped(run: Run) -> None:
    """Leave out of `failures.jsonl` the skipped steps that are done again; all processes may come here."""
    path = run.output / FAILURES
    if run.accelerator.is_main_process and path.exists():
        kept = [
            row for row in read_rows(path) if row["step"] <= run.counters.step or row["action"] != "skipped"
        ]
        write_text(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in kept))


def _step(run: Run) -> StepStats:
    """Learning rate, gradients, update, average."""
    run.optimizers.set_factor(learning_rate_at(run.step, run.counters.step))
    batches = run.pace.waiting(run.ahead.step(run.counters.step))
    return train_step(
        run.prepared,
        run.optimizers,
        run.ema,
        (batch.to(run.accelerator.device) for batch in witnessed(batches, run.counters.step + 1)),
        run.loss_fn,
        count=run.micro_batches_per_step,
        max_grad_norm=run.step.max_grad_norm,
        on_any=lambda flag: on_any(run.accelerator, flag)[0],
    )


def _lose(run: Run, error: LostStepError) -> StepStats:
    """Tell of the step that failed, then skip it or end; the same in every process."""
    run.optimizers.zero_grad()
    options, counters = run.step.non_finite, run.counters
    failure = _failure(run, error)
    told = _in_words(failure)
    if options.action == "rollback" and counters.step not in run.again:
        _write(run, failure | {"action": "rolled back"})
        raise RolledBackError(counters.step, told)
    counters.lost += 1
    counters.lost_in_a_row += 1
    if options.action == "stop":
        _end(run, failure, f"{told}; the last state is kept, non_finite.action=skip goes on without the step")
    if counters.lost_in_a_row >= options.in_a_row:
        _end(
            run,
            failure,
            f"{told}; it is number {counters.lost_in_a_row} after one another (non_finite.in_a_row): the run "
            "has gone wrong rather than a batch; begin again from an earlier checkpoint, or with a lower "
            "learning_rate",
        )
    if counters.lost >= options.in_all:
        _end(run, failure, f"{told}; it is number {counters.lost} in all (non_finite.in_all)")
    _write(run, failure | {"action": "skipped"})
    run.progress.say(f"{told}; skipped: weights, averages and optimiser are as before")
    return error.stats


def _end(run: Run, failure: dict[str, Any], message: str) -> NoReturn:
    _write(run, failure | {"action": "stopped"})
    raise NonFiniteError(message)


def _failure(run: Run, error: LostStepError) -> dict[str, Any]:
    """A row of `failures.jsonl`: the step from 1, its bucket, loss and gradient norm, samples to blame."""
    number = run.counters.step
    own = (error.samples, _damaged(run), float(error.stats.loss), float(error.stats.grad_norm))
    ranks = all_told(run.accelerator, own)
    height, width = run.order[number][0]
    return {
        "step": number + 1,
        "bucket": f"{height}x{width}",
        "loss": [f"{loss:g}" for _, _, loss, _ in ranks],
        "grad_norm": f"{own[3]:g}",
        "samples": [name for samples, *_ in ranks for name in samples],
        "damaged_features": [name for _, damaged, *_ in ranks for name in damaged],
    }


def _damaged(run: Run) -> list[str]:
    """Samples of the step whose stored features themselves are not finite."""
    found = []
    for batch in run.micro_batches():
        finite = torch.isfinite(batch.latents).flatten(1).all(1)
        if batch.text is not None and batch.mask is not None:
            finite &= torch.isfinite(batch.text).all(2).logical_or(~batch.mask).all(1)
        found += [name for name, good in zip(batch.ids, finite.tolist(), strict=True) if not good]
    return found


def _in_words(failure: dict[str, Any]) -> str:
    losses = ", ".join(dict.fromkeys(failure["loss"]))
    head = (
        f"step {failure['step']} ({failure['bucket']}): loss {losses}, gradient norm {failure['grad_norm']}"
    )
    if failure["damaged_features"]:
        names = _named(failure["damaged_features"])
        return f"{head}: the stored features of {names} are not finite, extract them again"
    if failure["samples"]:
        return f"{head}: not finite for {_named(failure['samples'])}"
    return f"{head}: every sample's loss is finite, their gradient is not"


def _named(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _write(run: Run, row: dict[str, Any]) -> None:
    if not run.accelerator.is_main_process:
        return
    path: Path = run.output / FAILURES
    try:
        append_row(path, row)
    except OSError as error:
        raise PixartError(f"cannot write {path}: {error.strerror}; the last state is kept") from error
