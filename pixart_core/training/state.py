"""The whole state of a training run on disk, and back, bit for bit."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pixart_core.artifacts.publish import staged_folder, write_json
from pixart_core.artifacts.seal import check_seal, seal
from pixart_core.errors import PixartError
from pixart_core.training.ema import Ema
from pixart_core.training.optimizer import Optimizers


@dataclasses.dataclass
class Counters:
    """Where a run is.

    Attributes:
        step: optimiser steps done; the next batch is that of `step`.
        seconds: time spent training so far, all sittings together.
        pending: sums of what is logged next ({loss, mse, vb, grad_norm}), over `pending_steps` steps.
    """

    step: int = 0
    seconds: float = 0.0
    pending: dict[str, float] = dataclasses.field(default_factory=dict)
    pending_steps: int = 0


def save_state(
    root: Path, model: nn.Module, ema: Ema, optimizers: Optimizers, counters: Counters, *, keep: int
) -> None:
    """Publish `root/step_XXXXXXXX` whole and on the disk, then delete all but the newest `keep` of them.

    Raises:
        PixartError: the disk is full; older states are untouched.
    """
    folder = root / f"step_{counters.step:08d}"
    for killed in root.glob(".step_*"):  # half-written by a run that was killed while saving
        shutil.rmtree(killed, ignore_errors=True)
    try:
        with staged_folder(folder) as staging:
            weights = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}
            save_file(weights, staging / "model.safetensors")
            save_file({n: t.cpu().contiguous() for n, t in ema.weights.items()}, staging / "ema.safetensors")
            torch.save(optimizers.state_dict(), staging / "optimizer.pt")
            write_json(staging / "counters.json", dataclasses.asdict(counters))
            seal(staging)
    except (SafetensorError, RuntimeError) as error:
        # Both libraries report a full disk in their own words.
        raise PixartError(f"cannot save {folder}: {error}; the states before it are kept") from error
    states = saved_states(root)
    # States of later steps were passed over as damaged when the run continued: they count for nothing.
    behind = [state for state in states if state.name > folder.name]
    for old in (*behind, *states[: len(states) - len(behind)][:-keep]):
        shutil.rmtree(old)


def saved_states(root: Path) -> list[Path]:
    """Complete states, oldest first (a state appears under its name only when it is whole)."""
    return sorted(path for path in root.glob("step_*") if path.is_dir())


def step_of(state: Path) -> int:
    """Optimiser steps done in a state, from its folder's name."""
    return int(state.name.removeprefix("step_"))


def load_newest(root: Path, model: nn.Module, ema: Ema, optimizers: Optimizers) -> tuple[Counters, list[str]]:
    """Load the newest readable state into the arguments.

    Returns:
        Its counters (step 0 when there is none) and a line for every damaged state that was passed over.
    """
    problems: list[str] = []
    for folder in reversed(saved_states(root)):
        try:
            parts = _read(folder)
        except (OSError, ValueError, RuntimeError, SafetensorError, EOFError) as error:
            problems.append(f"{folder} is damaged ({error}); using the one before it")
            continue
        weights, averages, optimizer, counters = parts
        model.load_state_dict(weights, strict=True)
        ema.load(averages)
        optimizers.load_state_dict(optimizer)
        return counters, problems
    return Counters(), problems


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]], Counters]:
    check_seal(folder)
    counters = Counters(**json.loads((folder / "counters.json").read_text()))
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
    return load_file(folder / "model.safetensors"), load_file(folder / "ema.safetensors"), optimizer, counters
