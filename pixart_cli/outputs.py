"""Where results go: a default for each command, and what must not be overwritten."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pixart_core.artifacts.card import card_for, read_card
from pixart_core.errors import UserError
from pixart_core.recipe.records import CHAIN


@dataclasses.dataclass(frozen=True)
class Artifact:
    """What a command makes.

    Attributes:
        folder: parent of its default outputs.
        kinds: kinds its card may have.
        traces: names that an unfinished output may hold.
    """

    folder: str
    kinds: tuple[str, ...]
    traces: tuple[str, ...]


ARTIFACTS = {
    "caption": Artifact("captions", ("captions",), ("captions*", "manifest*", "dropped*")),
    "extract-features": Artifact("features", ("features",), ("index*", "*.safetensors", "manifest*")),
    "train": Artifact("runs", ("checkpoint",), ("log*", "recipe.yaml", "checkpoints", "transformer")),
    "sample": Artifact("samples", ("samples",), ("images", "samples*")),
    "evaluate": Artifact("reports", ("report",), ("report*",)),
    "convert": Artifact("converted", ("checkpoint", "pipeline", "official"), ("transformer", "model_index*")),
}


def name_of(source: str) -> str:
    """A folder name for what comes from `source` (a path, glob or hub id)."""
    last = [part for part in re.split(r"[/:]", source) if part not in ("", ".", "..")][-1:]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "".join(last)).strip("-.") or "data"


def default_output(command: str, name: str, step: BaseModel) -> Path:
    """`<folder>/<name>`, or with a number behind it if that holds a finished result of other options."""
    artifact, number = ARTIFACTS[command], 1
    output = Path(artifact.folder) / name
    while not _is_free(output, artifact, step):
        number += 1
        output = Path(artifact.folder) / f"{name}-{number}"
    return output


def check_output(command: str, output: Path) -> None:
    """Refuse to write over something of another kind.

    Raises:
        UserError: `output` is a file, a chain's folder, another artifact, or holds foreign files.
    """
    artifact = ARTIFACTS[command]
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; choose another --output")
    if (output / CHAIN).is_dir():
        raise UserError(f"{output} is the folder of a `pixart run`; choose another --output")
    card = read_card(output)
    if card is not None and card["kind"] not in artifact.kinds:
        raise UserError(f"{output} holds {card['kind']}; choose another --output")
    if card is None and output.is_dir() and not _unfinished(output, artifact):
        raise UserError(f"{output} is not empty and not made by pixart {command}; choose another --output")


def _is_free(output: Path, artifact: Artifact, step: BaseModel) -> bool:
    if (output / CHAIN).is_dir():
        return False
    card: dict[str, Any] | None = read_card(output)
    if card is None:
        return not output.exists() or (output.is_dir() and _unfinished(output, artifact))
    return card["fingerprint"] == card_for(card["kind"], step, {}).fingerprint


def _unfinished(output: Path, artifact: Artifact) -> bool:
    """Whether a folder without a card is empty or holds an interrupted run of the same command."""
    visible = [entry for entry in output.iterdir() if not entry.name.startswith(".")]
    return not visible or any(entry.match(trace) for entry in visible for trace in artifact.traces)
