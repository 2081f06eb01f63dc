"""Where results go: a default for each command, and what must not be overwritten."""

import contextlib
import dataclasses
import json
import re
from pathlib import Path

from pixart_core.artifacts.card import card_for, made_by, read_card, what_differs
from pixart_core.artifacts.publish import check_writable
from pixart_core.errors import UserError
from pixart_core.recipe.base import Strict
from pixart_core.recipe.records import CHAIN
from pixart_core.recipe.sameness import same_work


@dataclasses.dataclass(frozen=True)
class Artifact:
    """What a command makes.

    Attributes:
        folder: parent of its default outputs.
        kinds: kinds its card may have.
        traces: names that an unfinished output may hold.
        replaces: whether a run overwrites a finished result without comparing options itself.
    """

    folder: str
    kinds: tuple[str, ...]
    traces: tuple[str, ...]
    replaces: bool = False


ARTIFACTS = {
    "caption": Artifact("captions", ("captions",), ("captions*", "manifest*", "dropped*")),
    "caption --stats": Artifact("statistics", ("caption-statistics",), ("statistics*",), replaces=True),
    "extract-features": Artifact("features", ("features",), ("index*", "*.safetensors", "manifest*")),
    "extract-features --import": Artifact("features", ("features",), ("index*", "*.safetensors")),
    "train": Artifact(
        "runs",
        ("checkpoint",),
        ("log*", "recipe.yaml", "checkpoints", "transformer", "resume_certificate.json"),
    ),
    "sample": Artifact("samples", ("samples",), ("images", "samples*", "sampling.json")),
    "evaluate": Artifact("reports", ("report",), ("report*",), replaces=True),
    # A conversion appears whole: it leaves nothing unfinished.
    "convert": Artifact("converted", ("checkpoint", "pipeline", "official"), (), replaces=True),
}


def name_of(source: str) -> str:
    """A folder name for what comes from `source` (a path, glob or hub id)."""
    last = [part for part in re.split(r"[/:]", source) if part not in ("", ".", "..")][-1:]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "".join(last)).strip("-.") or "data"


def default_output(command: str, name: str, step: Strict) -> Path:
    """`<folder>/<name>`, or with a number behind it if that holds a finished result of other options."""
    artifact, number = ARTIFACTS[command], 1
    output = Path(artifact.folder) / name
    while not _is_free(output, artifact, step):
        number += 1
        output = Path(artifact.folder) / f"{name}-{number}"
    return output


def check_output(command: str, output: Path, step: Strict) -> None:
    """Refuse to write over something else, or where nothing can be written.

    Raises:
        UserError: `output` is a file, a chain's folder, the result of another command or (where a run would
            overwrite it) of other options, holds foreign files, or cannot be made.
    """
    artifact = ARTIFACTS[command]
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; choose another --output")
    if (output / CHAIN).is_dir():
        raise UserError(f"{output} is the folder of a `pixart run`; choose another --output")
    card = read_card(output)
    if card is not None:
        maker = card["options"].get("command")
        if card["kind"] not in artifact.kinds or maker != command:
            raise UserError(f"{output} holds {card['kind']} made by pixart {maker}; choose another --output")
        if artifact.replaces and not made_by(card, step):
            how = what_differs(card, card_for(card["kind"], step, {}))
            raise UserError(
                f"{output} holds a result of other options or inputs{how}; choose another --output"
            )
    elif output.is_dir() and not _unfinished(output, artifact):
        raise UserError(f"{output} is not empty and not made by pixart {command}; choose another --output")
    # A conversion is renamed into place, so the folder around it matters too.
    check_writable(output.absolute().parent if command == "convert" else output)


def _is_free(output: Path, artifact: Artifact, step: Strict) -> bool:
    if (output / CHAIN).is_dir():
        return False
    card = read_card(output)
    if card is not None:
        return made_by(card, step)
    if not output.exists():
        return True
    return output.is_dir() and _unfinished(output, artifact) and _is_of(output, artifact, step)


def _is_of(output: Path, artifact: Artifact, step: Strict) -> bool:
    """Whether an unfinished folder was begun by `step`, as far as its marker tells."""
    card = card_for(artifact.kinds[0], step, {})
    with contextlib.suppress(OSError, ValueError):
        if begun := (output / "sampling.json").read_text().split():  # a commit of the hub may follow
            return begun[0] == card.fingerprint
    with contextlib.suppress(OSError, ValueError):
        return same_work(json.loads((output / ".run.json").read_text()), step)
    return True


def _unfinished(output: Path, artifact: Artifact) -> bool:
    """Whether a folder without a card is empty or holds an interrupted run of the same command."""
    if not artifact.traces:
        return not any(output.iterdir())
    visible = [entry for entry in output.iterdir() if not entry.name.startswith(".")]
    return not visible or any(entry.match(trace) for entry in visible for trace in artifact.traces)
