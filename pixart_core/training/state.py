"""The whole state of a training run on disk, and back, bit for bit, for any number of processes."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor, nn

from pixart_core.artifacts.publish import staged_folder, write_json
from pixart_core.artifacts.seal import check_seal, seal
from pixart_core.errors import PixartError, UserError
from pixart_core.training.ema import Ema
from pixart_core.training.optimizer import Optimizers
from pixart_core.training.processes import all_told
from pixart_core.training.shards import as_sharded, is_sharded, local
from pixart_core.training.state_tensors import Layouts, check_layouts, read_parts, tensor_shapes, write_whole
from pixart_core.training.witness import passing

MODEL, EMA, OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer.safetensors"
ABSENT = "it is not there"
NUMBERS, COUNTERS = "optimizer.json", "counters.json"


@dataclasses.dataclass
class Counters:
    """Where a run is.

    Attributes:
        step: optimiser steps done; the next batch is that of `step`.
        seconds: time spent training so far, all sittings together.
        pending: sums of what is logged next ({loss, mse, vb, grad_norm}), over `pending_steps` steps, of this
            process's share of the batches.
        lost, lost_in_a_row: steps that were skipped because they were not finite (see `recover`).
    """

    step: int = 0
    seconds: float = 0.0
    pending: dict[str, float] = dataclasses.field(default_factory=dict)
    pending_steps: int = 0
    lost: int = 0
    lost_in_a_row: int = 0


def save_state(
    root: Path,
    model: nn.Module,
    ema: Ema,
    optimizers: Optimizers,
    counters: Counters,
    *,
    keep: int,
    keep_every: int | None = None,
    accelerator: Accelerator,
) -> None:
    """Publish `root/step_XXXXXXXX` whole and on the disk, then delete all but the newest `keep` of them.

    Those whose step is a multiple of `keep_every` stay besides.

    All processes must come here; the first writes. Tensors are whole in the files, under the model's names,
    so that the state does not depend on how many processes there are and what each of them holds.

    Raises:
        PixartError: the disk is full; older states are untouched. Only the first process raises it.
    """
    pending = all_told(accelerator, counters.pending)
    files = iter(_tensor_files(model, ema, optimizers))
    folder = root / f"step_{counters.step:08d}"
    if not accelerator.is_main_process:
        _take_part(files)
        return
    for killed in root.glob(".step_*"):  # half-written by a run that was killed while saving
        shutil.rmtree(killed, ignore_errors=True)
    try:
        with staged_folder(folder) as staging:
            for name, tensors, layouts in files:
                write_whole(staging / name, tensors, layouts)
                passing("saving", counters.step)
            write_json(staging / NUMBERS, _optimizer_numbers(optimizers))
            write_json(staging / COUNTERS, dataclasses.asdict(counters) | {"pending": pending})
            seal(staging)
    except PixartError as error:
        _take_part(files)
        raise PixartError(f"cannot save {folder}: {error}; the states before it are kept") from error
    passing("saved", counters.step)
    states = saved_states(root)
    # States of later steps were passed over as damaged when the run continued: they count for nothing.
    behind = [state for state in states if state.name > folder.name]
    ordinary = [
        state
        for state in states[: len(states) - len(behind)]
        if keep_every is None or step_of(state) % keep_every
    ]
    for old in (*behind, *ordinary[:-keep]):
        going = old.with_name(f".{old.name}.old")  # a kill shall not leave half of it under its name
        old.rename(going)
        shutil.rmtree(going)


def saved_states(root: Path) -> list[Path]:
    """Complete states, oldest first (a state appears under its name only when it is whole)."""
    return sorted(path for path in root.glob("step_*") if path.is_dir())


def step_of(state: Path) -> int:
    """Optimiser steps done in a state, from its folder's name."""
    return int(state.name.removeprefix("step_"))


def load_newest(
    root: Path, model: nn.Module, ema: Ema, optimizers: Optimizers, accelerator: Accelerator
) -> tuple[Counters, list[str]]:
    """Load the newest state that every process can read into the arguments; each reads its part.

    Returns:
        Its counters (step 0 when there is none) and a line for every damaged state that was passed over.

    Raises:
        UserError: a process does not see the states that the first one sees, or all of them are damaged:
            beginning anew would remove what may yet be saved.
    """
    problems: list[str] = []
    for name in all_told(accelerator, [state.name for state in reversed(saved_states(root))])[0]:
        folder = root / name
        # Each machine hashes the files once.
        own = _damage(folder, model, thorough=accelerator.is_local_main_process)
        damages = all_told(accelerator, own)
        if ABSENT in damages:
            raise UserError(
                f"process {damages.index(ABSENT)} does not see {folder}: the output must be shared"
            )
        if damage := next((damage for damage in damages if damage), None):
            problems.append(f"{folder} is damaged ({damage}); using the one before it")
            continue
        return _load(folder, model, ema, optimizers, accelerator), problems
    if problems:
        raise UserError(
            f"no state in {root} can be read ({problems[0].partition(';')[0]}): bring one back, or remove "
            "the folder to begin anew"
        )
    return Counters(), problems


def _damage(folder: Path, model: nn.Module, *, thorough: bool) -> str:
    """Why this process cannot read a state; empty if it can. `thorough` compares the hashes, too."""
    if not folder.is_dir():
        return ABSENT
    try:
        check_seal(folder, hashes=thorough)
        for name in (MODEL, EMA):
            check_layouts(folder / name, dict(model.named_parameters()))
        tensor_shapes(folder / OPTIMIZER)
        for name in (NUMBERS, COUNTERS):
            json.loads((folder / name).read_text())
    except (OSError, ValueError, SafetensorError) as error:
        return str(error) or type(error).__name__
    return ""


@torch.no_grad()
def _load(
    folder: Path, model: nn.Module, ema: Ema, optimizers: Optimizers, accelerator: Accelerator
) -> Counters:
    layouts = dict(model.named_parameters())
    for name, part in read_parts(folder / MODEL, layouts):
        local(layouts[name]).copy_(part)
    ema.load(dict(read_parts(folder / EMA, layouts)))
    _load_optimizers(folder, optimizers)
    saved = json.loads((folder / COUNTERS).read_text())
    pending = saved.pop("pending")
    if len(pending) == accelerator.num_processes:
        own = pending[accelerator.process_index]
    else:  # another number of processes: what all of them had, shared out evenly
        own = {name: sum(part[name] for part in pending) / len(pending) for name in pending[0]}
    return Counters(**saved, pending=own)


def _tensor_files(
    model: nn.Module, ema: Ema, optimizers: Optimizers
) -> Iterator[tuple[str, dict[str, Tensor], Layouts]]:
    """(file, this process's tensors, how they are spread)."""
    layouts = dict(model.named_parameters())
    yield MODEL, {name: local(p.detach()) for name, p in layouts.items()}, layouts
    yield EMA, ema.weights, layouts
    states = {name: value for name, value in _optimizer_state(optimizers) if isinstance(value, Tensor)}
    yield OPTIMIZER, {name: local(value) for name, value in states.items()}, states


def _take_part(files: Iterator[tuple[str, dict[str, Tensor], Layouts]]) -> None:
    for _, tensors, layouts in files:
        write_whole(None, tensors, layouts)


def _optimizer_state(optimizers: Optimizers) -> Iterator[tuple[str, Any]]:
    """State of each parameter: ("OPTIMIZER.PARAMETER.KEY", value), parameters counted within an optimiser."""
    for number, part in enumerate(optimizers.parts):
        for index, state in part.state_dict()["state"].items():
            for key, value in state.items():
                yield f"{number}.{index}.{key}", value


def _optimizer_numbers(optimizers: Optimizers) -> dict[str, Any]:
    return {name: value for name, value in _optimizer_state(optimizers) if not isinstance(value, Tensor)}


def _load_optimizers(folder: Path, optimizers: Optimizers) -> None:
    """Put the state of each parameter back. Groups stay: the recipe alone says what they hold."""
    values: dict[str, Any] = json.loads((folder / NUMBERS).read_text())
    parameters = [[p for group in part.param_groups for p in group["params"]] for part in optimizers.parts]
    layouts: dict[str, Tensor] = {}
    for name, shape in tensor_shapes(folder / OPTIMIZER).items():
        number, index, _ = name.split(".", 2)
        parameter = parameters[int(number)][int(index)]
        sharded = is_sharded(parameter) and parameter.shape == shape
        layouts[name] = parameter if sharded else torch.empty(shape, device="meta")
    for name, tensor in read_parts(folder / OPTIMIZER, layouts):
        values[name] = as_sharded(tensor.clone(), layouts[name])  # not the mapped file itself
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers.parts]
    for name, value in values.items():
        number, index, key = name.split(".", 2)
        states[int(number)].setdefault(int(index), {})[key] = value
    for part, state in zip(optimizers.parts, states, strict=True):
        part.load_state_dict(part.state_dict() | {"state": state})
