"""`card.json`: what a folder holds, with which options it was made, and from which inputs."""

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel

from pixart_core import __version__
from pixart_core.artifacts.patterns import expand_pattern, is_pattern
from pixart_core.artifacts.publish import json_text, write_text
from pixart_core.errors import UserError
from pixart_core.recipe.base import Strict
from pixart_core.recipe.schema import source_fields

CARD = "card.json"
SCHEMA_VERSION = 1
_SHORT = 80  # letters of two values that are told
_FIELDS = {
    "kind": str,
    "options": dict,
    "inputs": dict,
    "details": dict,
    "schema_version": int,
    "pixart_version": str,
    "fingerprint": str,
}


@dataclasses.dataclass(frozen=True)
class Card:
    """The card of an artifact. It is written last: a folder with a card is complete.

    No times and no absolute paths of outputs, so that equal runs write equal cards.

    Attributes:
        kind: manifest, captions, features, encoders, checkpoint, samples, report, pipeline.
        options: the resolved options of the command that made it.
        inputs: name of each input and its fingerprint.
        details: what a reader needs (counts, shapes, hashes of encoders, ...).
    """

    kind: str
    options: Mapping[str, Any]
    inputs: Mapping[str, str]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    pixart_version: str = __version__

    @property
    def fingerprint(self) -> str:
        """16 hex digits over kind, options, inputs and code version."""
        return fingerprint(
            {
                "kind": self.kind,
                "options": self.options,
                "inputs": self.inputs,
                "schema_version": self.schema_version,
                "pixart_version": self.pixart_version,
            }
        )

    def write(self, folder: Path) -> None:
        """Publish this card in `folder`, which makes the artifact complete."""
        write_text(folder / CARD, self.text())

    def text(self) -> str:
        """The content of its file."""
        return json_text(dataclasses.asdict(self) | {"fingerprint": self.fingerprint})

    @classmethod
    def read(cls, folder: Path, kind: str) -> Self:
        """Read the card of `folder`.

        Raises:
            UserError: no folder, no card (not made by pixart, or unfinished), or another kind.
        """
        card = read_card(folder)
        if card is None:
            state = "has no card.json (unfinished, or not made by pixart)"
            if (folder / CARD).is_file():
                state = "has a damaged card.json"
            raise UserError(f"{folder} {state if folder.is_dir() else 'is not a folder'}; expected {kind}")
        if card["kind"] != kind:
            raise UserError(f"{folder} holds {card['kind']}, expected {kind}")
        if card["schema_version"] > SCHEMA_VERSION:
            raise UserError(
                f"{folder} was made by a newer pixart ({card['pixart_version']}); upgrade to read it"
            )
        fields = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in card.items() if name in fields})


def read_card(folder: Path) -> dict[str, Any] | None:
    """The raw card of `folder`, or None when there is none (or it lacks a field that every card has)."""
    try:
        card = json.loads((folder / CARD).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(card, dict):
        return None
    whole = all(isinstance(card.get(name), type_) for name, type_ in _FIELDS.items())
    return card if whole else None


def made_by(card: Mapping[str, Any], step: BaseModel) -> bool:
    """Whether a raw card is that of what `step` makes: the same command, options, inputs and version."""
    return bool(card["fingerprint"] == card_for(card["kind"], step, {}).fingerprint)


def what_differs(there: Mapping[str, Any], here: Card) -> str:
    """` (seed 0 there, 3 here; another checkpoint)`: why a raw card is not `here`; empty if nothing tells.

    What is too long for a line is named only.
    """
    names = sorted({*there["options"], *here.options})
    pairs = [(name, _as_json(there["options"].get(name)), _as_json(here.options.get(name))) for name in names]
    parts = [
        f"{name} {before} there, {now} here" if len(before + now) <= _SHORT else f"other {name}"
        for name, before, now in pairs
        if before != now
    ]
    inputs = sorted({*there["inputs"], *here.inputs})
    parts += [f"another {name}" for name in inputs if there["inputs"].get(name) != here.inputs.get(name)]
    if there["pixart_version"] != here.pixart_version:
        parts.append(f"pixart {there['pixart_version']} there, {here.pixart_version} here")
    return f" ({'; '.join(parts)})" if parts else ""


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)


def fingerprint(value: Any) -> str:
    """16 hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_input(source: str | Path) -> str:
    """Fingerprint an input: the card of an artifact, else names, sizes and times of its files.

    Those of every file behind a pattern (`x/*.tar`) and of the folder behind `hf:FOLDER[/split]` count.
    A text that is no path (a hub id) is its own fingerprint.
    """
    path = Path(source)
    card = read_card(path)
    if card is not None:
        return str(card["fingerprint"])
    if path.is_file():
        state = path.stat()
        return fingerprint([path.name, state.st_size, state.st_mtime_ns])
    if path.is_dir():
        return _fingerprint_files(path)
    text = str(source)
    if text.startswith("hf:"):
        folder = _hub_folder(text.removeprefix("hf:"))
        return f"id:{text}" if folder is None else fingerprint([text, fingerprint_input(folder)])
    if is_pattern(text) and (files := expand_pattern(text)):
        return fingerprint([fingerprint_input(file) for file in files])
    return f"id:{text}"


def _fingerprint_files(folder: Path) -> str:
    """`fingerprint` of the list of (name, bytes, time) of all files below `folder`, without the list."""
    digest, separator = hashlib.sha256(b"["), ""
    for name, state in _files_below(str(folder), "", set()):
        row = json.dumps([name, state.st_size, state.st_mtime_ns], separators=(",", ":"))
        digest.update((separator + row).encode())
        separator = ","
    digest.update(b"]")
    return digest.hexdigest()[:16]


def _files_below(
    folder: str, prefix: str, seen: set[tuple[int, int]]
) -> Iterator[tuple[str, os.stat_result]]:
    """In the order of their names; links are followed, each folder counts once, what is gone does not."""
    try:
        place = os.stat(folder)
        names = sorted(os.listdir(folder))
    except OSError:
        return
    if (place.st_dev, place.st_ino) in seen:
        return
    seen.add((place.st_dev, place.st_ino))
    for name in names:
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            state = os.stat(path)
            if stat.S_ISREG(state.st_mode):
                yield prefix + name, state
            elif stat.S_ISDIR(state.st_mode):
                yield from _files_below(path, f"{prefix}{name}/", seen)


def _hub_folder(text: str) -> Path | None:
    """The local folder that stands for a data set: `FOLDER`, or `FOLDER/split` of a path."""
    path = Path(text)
    if path.is_dir():
        return path
    return path.parent if text.startswith(("/", "./", "../")) and path.parent.is_dir() else None


def card_for(kind: str, step: BaseModel, details: Mapping[str, Any]) -> Card:
    """The card of what `step` made: its sources become fingerprints, everything else options.

    Paths stay out of `options`, so that equal runs in different folders have equal cards.
    """
    options, sources = split_sources(step)
    inputs = {field: fingerprint_input(source) for field, source in sources.items()}
    return Card(kind=kind, options=options, inputs=inputs, details=details)


def split_sources(step: BaseModel) -> tuple[dict[str, Any], dict[str, str]]:
    """(options without sources, {field: source}) of a step whose `{step: NAME}` are resolved.

    What it leaves out of its record (`Strict.unrecorded`) is in neither.
    """
    left_out: frozenset[str] = getattr(step, "unrecorded", frozenset())
    options = step.model_dump(mode="json", exclude=set(left_out))
    sources: dict[str, str] = {}
    for field in source_fields(type(step)):
        if field in left_out:
            continue
        value = options.pop(field)
        entries = value.items() if isinstance(value, dict) else [(None, value)]
        for key, source in entries:
            if source is not None:
                sources[field if key is None else f"{field}.{key}"] = str(source)
    for field in type(step).model_fields.keys() - left_out:
        within = getattr(step, field)
        if isinstance(within, Strict):
            for name in sorted(within.unrecorded | within.inputs):
                source = options[field].pop(name)
                if source is not None and name in within.inputs:
                    sources[f"{field}.{name}"] = str(source)
    return options, sources
