"""The recipe that an output folder was begun with, what may change in it, and what did."""

import datetime
import json
import platform
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from pixart_core import __version__
from pixart_core.artifacts.card import read_card
from pixart_core.artifacts.checkpoint import LOG, TRANSFORMER
from pixart_core.artifacts.publish import write_json, write_text
from pixart_core.errors import UserError
from pixart_core.progress import Progress
from pixart_core.recipe.sameness import Changes, differences, field_of, recorded, recorded_changes, same_work
from pixart_core.recipe.training import TrainStep
from pixart_core.training.log import read_rows
from pixart_core.training.schedule import learning_rate_at
from pixart_core.training.state import saved_states, step_of

RECIPE = "recipe.yaml"
HISTORY = "history.jsonl"
MARKER = ".run.json"


def finished_result(step: TrainStep, output: Path) -> dict[str, Any] | None:
    """The result of the finished training that `output` holds, if it is that of `step`."""
    card = read_card(output)
    if card is None or card["kind"] != "checkpoint" or not same_work(card, step):
        return None
    if not (output / TRANSFORMER / "config.json").exists():  # removed since: it is written again
        return None
    rows = read_rows(output / LOG)
    last = rows[-1] if rows else {}
    return {
        "output": str(output),
        "steps": step.max_train_steps,
        "images": step.max_train_steps * step.global_batch_size,
        "seconds": round(last.get("seconds", 0.0), 1),
        "loss": last.get("loss"),
    }


def continue_or_refuse(step: TrainStep, output: Path, states: Path, progress: Progress) -> Changes:
    """Compare `step` with what `output` was begun with; tells and returns what changed, if it may.

    Before the first state everything may change: nothing is lost.

    Raises:
        UserError: another training; the first differences are named.
    """
    found, stored = saved_states(states), _read_marker(output / MARKER)
    if stored is None or not found:
        return {}
    done = step_of(found[-1])
    changed = recorded_changes(stored, step)
    reasons = {key: _refusal(step, key, before, done) for key, (before, _) in changed.items()}
    refused = [
        f"{key}: {changed[key][0]!r} before, {changed[key][1]!r} now{reason}"
        for key, reason in reasons.items()
        if reason is not None
    ]
    if refused:
        raise UserError(
            f"{output} holds a run with other settings ({'; '.join(refused[:3])}); "
            "choose another output or restore them"
        )
    changed |= _unrecorded_changes(output / RECIPE, step)
    if changed:
        told = ", ".join(f"{key} {before} -> {now}" for key, (before, now) in changed.items())
        rounded = sorted(key for key in changed if field_of(key) in step.rounding)
        note = f"; the draws stay the same, but {', '.join(rounded)} may change the rounding of sums"
        progress.say(f"continuing with other settings: {told}{note if rounded else ''}")
    return changed


def record_sitting(
    step: TrainStep, output: Path, changed: Changes, begin: int, accelerator: Accelerator
) -> None:
    """Store the resolved recipe of now, and a line on this sitting, which begins at step `begin`.

    Raises:
        PixartError: the folder cannot be written.
    """
    write_text(output / RECIPE, yaml.safe_dump(step.model_dump(mode="json"), sort_keys=False))
    write_json(output / MARKER, recorded(step))
    device = accelerator.device
    row = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": begin,
        "changed": {key: list(values) for key, values in changed.items()},
        "pixart": __version__,
        "torch": torch.__version__,
        "host": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": accelerator.num_processes,
    }
    rows = [*read_rows(output / HISTORY), row]
    write_text(output / HISTORY, "".join(json.dumps(row) + "\n" for row in rows))


def _unrecorded_changes(path: Path, step: TrainStep) -> Changes:
    """Options that no weight depends on, compared with `recipe.yaml`."""
    try:
        before = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return {}
    if not isinstance(before, dict):
        return {}
    now = json.loads(step.model_dump_json(include=set(step.unrecorded)))
    return differences({key: before[key] for key in now.keys() & before.keys()}, now, before.keys())


def _refusal(step: TrainStep, key: str, before: Any, done: int) -> str | None:
    """Why `key` may not change after `done` steps ("" where that is plain); None: it may."""
    if field_of(key) in step.rounding:
        return None
    if key != "max_train_steps":
        return ""
    if step.max_train_steps < done:
        return f" (the run is at step {done} already)"
    old = step.model_copy(update={"max_train_steps": before})
    past = {*range(0, done, max(1, done // 1000)), done - 1}
    if any(learning_rate_at(old, number) != learning_rate_at(step, number) for number in past):
        return f" (with lr_scheduler {step.lr_scheduler} the steps done would have had other learning rates)"
    routing = step.token_routing
    if (
        routing is not None
        and len({min(done, routing.steps(total)) for total in (before, step.max_train_steps)}) > 1
    ):
        return " (steps done would have had token_routing)"
    return None


def _read_marker(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        told = f"{path} is damaged ({error}); remove it, and check that the recipe is as before"
        raise UserError(told) from error
