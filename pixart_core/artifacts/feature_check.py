"""Finds damage in a feature store, names it, and forgets the damaged shards so that they are made again."""

import dataclasses
import mmap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pixart_core.artifacts.card import CARD, read_card
from pixart_core.artifacts.feature_files import MappedFile, map_columns
from pixart_core.artifacts.feature_index import INDEX, Index, read_index, write_index
from pixart_core.artifacts.feature_plan import KINDS, FeaturePlan, PlannedShard
from pixart_core.artifacts.publish import sync_folder
from pixart_core.errors import PixartError, UserError
from pixart_core.progress import Progress

_WINDOW = 2**24  # bytes that are hashed at a time, and asked for ahead


@dataclasses.dataclass(frozen=True)
class Damage:
    """One damaged file of a store.

    Attributes:
        shard: name of the file.
        reason: what is wrong with it.
        samples: the damaged rows in it: manifest ids of images, numbers of captions.
    """

    shard: str
    reason: str
    samples: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = ", ".join(self.samples[:5]) + (", ..." if len(self.samples) > 5 else "")
        return f"{self.shard}: {self.reason}" + (f" ({named})" if named else "")


def verify(folder: Path, progress: Progress) -> list[Damage]:
    """Read every byte of a store, finished or not, and compare it with its hashes and its plan.

    Shards that are not made yet are no damage, unless the card says that the store is finished.

    Returns:
        All damage, in the order of the index, the plan, the shards, the card.

    Raises:
        UserError: `folder` holds no feature store, or one of another format.
    """
    index = read_index(folder)
    if not index.entries and not index.damaged:
        raise UserError(f"{folder} holds no feature store (no {INDEX})")
    damages = _check_index(index)
    total = sum(int(entry["bytes"]) for entry in index.entries.values() if entry["kind"] != "card")
    meter = _Meter(progress, total)
    plan_damages: list[Damage] = []
    for entry in index.entries.values():
        if entry["kind"] == "plan":
            plan_damages += _check_file(folder, entry, None, meter)
    # A damaged plan would only call healthy shards wrong.
    plan = None if plan_damages else _load_plan(folder, plan_damages)
    damages += plan_damages
    if plan is not None:
        damages += _check_plan(index, plan)
    planned = {} if plan is None else {s.name: s for kind in KINDS for s in plan.shards(kind)}
    for name, entry in index.entries.items():
        if entry["kind"] in KINDS:
            damages += _check_shard(folder, entry, plan, planned.get(name), meter)
    damages += _check_names(folder, index, plan, planned)
    damages += _check_card(folder, index)
    progress.finish(meter.task)
    progress.say(meter.told())
    return damages


def discard(folder: Path, damages: Iterable[Damage]) -> None:
    """Forget the damaged files: their index lines, the files, and the card.

    The next extraction makes them, and only them, again. Call it as the only launch.

    Raises:
        UserError: what is lost cannot be made again.
        PixartError: the folder cannot be written.
    """
    names = {damage.shard for damage in damages}
    if not names:
        return
    index, lost, settings = _replaceable(folder, names)
    # The line of a lost plan stays: the plan that is made again must be the same.
    kept = [entry for name, entry in index.entries.items() if name not in names or name in lost]
    try:
        (folder / CARD).unlink(missing_ok=True)
        sync_folder(folder)
        write_index(folder, settings, kept)
        for name in names - {INDEX, CARD}:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise PixartError(f"cannot write {folder}: {error.strerror or error}") from error


def refuse_irreplaceable(folder: Path, damages: Iterable[Damage]) -> None:
    """Raises: UserError: what is lost cannot be made again, so `discard` would refuse."""
    _replaceable(folder, {damage.shard for damage in damages})


def _replaceable(folder: Path, names: set[str]) -> tuple[Index, list[str], str]:
    """The index, the segments of the plan that are lost, and the fingerprint of its settings."""
    index = read_index(folder)
    segments = sorted(name for name, entry in index.entries.items() if entry["kind"] == "plan")
    lost = [name for name in segments if name in names or not (folder / name).exists()]
    if lost and lost != segments[-1:]:
        raise UserError(
            f"{folder}: {lost[0]} is one of several plans and cannot be made again; "
            "delete the store and extract again"
        )
    if index.plan is not None:
        return index, lost, index.plan
    if lost or not segments:
        raise UserError(f"{folder}: plan and index are lost; delete the store and extract again")
    return index, lost, FeaturePlan.load(folder).fingerprint


class _Meter:
    """Tells how much was read, and how fast."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        # A small store has no megabyte to count.
        self.task, self._unit = ("check (MB)", 10**6) if total >= 10**7 else ("check (KB)", 10**3)
        progress.start(self.task, total // self._unit)
        self._started = time.perf_counter()
        self._bytes = 0
        self.files = 0

    def add(self, count: int) -> None:
        before, self._bytes = self._bytes, self._bytes + count
        count_now = self._bytes // self._unit - before // self._unit
        self._progress.advance(self.task, count_now, f"{self._speed():.0f} MB/s")

    def told(self) -> str:
        size = f"{self._bytes / 1e9:.1f} GB" if self._bytes >= 10**9 else f"{self._bytes / 1e6:.1f} MB"
        return f"checked {self.files} files, {size} at {self._speed():.0f} MB/s"

    def _speed(self) -> float:
        return self._bytes / 1e6 / max(time.perf_counter() - self._started, 1e-9)


def _check_index(index: Index) -> list[Damage]:
    found = []
    if index.damaged:
        lines = ", ".join(map(str, index.damaged[:5]))
        found.append(Damage(INDEX, f"damaged in line {lines}; what it names counts as not made"))
    elif index.plan is None:
        found.append(Damage(INDEX, "its first line is gone"))
    return found


def _load_plan(folder: Path, damages: list[Damage]) -> FeaturePlan | None:
    try:
        return FeaturePlan.load(folder)
    except UserError:
        damages.append(Damage("plan-00000.safetensors", "is gone or damaged, and not in the index"))
        return None


def _check_plan(index: Index, plan: FeaturePlan) -> list[Damage]:
    found = []
    if index.plan is not None and index.plan != plan.fingerprint:
        found.append(Damage(INDEX, "belongs to another plan"))
    for name in plan.segments:
        if name not in index.entries:
            found.append(Damage(name, "is not in the index"))
    return found


def _check_names(
    folder: Path, index: Index, plan: FeaturePlan | None, planned: Mapping[str, PlannedShard]
) -> list[Damage]:
    """Shards that should be there, and files that should not."""
    found = []
    finished = (folder / CARD).exists()
    if finished:
        gone = [name for name in planned if name not in index.entries]
        found += [Damage(name, "is not in the index of a finished store") for name in gone]
    if plan is None:
        return found
    files = {path.name for kind in (*KINDS, "plan") for path in folder.glob(f"{kind}-*.safetensors")}
    for name in sorted(files - index.entries.keys() - planned.keys() - set(plan.segments)):
        found.append(Damage(name, "does not belong to the store"))
    return found


def _check_card(folder: Path, index: Index) -> list[Damage]:
    path = folder / CARD
    if not path.exists():
        return []
    entry = index.entries.get(CARD)
    if read_card(folder) is None:
        return [Damage(CARD, "damaged")]
    if entry is not None and xxhash.xxh3_128(path.read_bytes()).hexdigest() != entry["xxh3_128"]:
        return [Damage(CARD, "differs from what was written")]
    return []


def _check_shard(
    folder: Path,
    entry: Mapping[str, Any],
    plan: FeaturePlan | None,
    planned: PlannedShard | None,
    meter: _Meter,
) -> list[Damage]:
    if plan is not None and planned is None:
        return [Damage(entry["name"], "is in the index, but not in the plan")]
    if planned is not None and entry["count"] != len(planned.rows):
        return [Damage(entry["name"], f"holds {entry['count']} samples; {len(planned.rows)} are planned")]

    def named(rows: Sequence[int]) -> tuple[str, ...]:
        if plan is None or planned is None:
            return tuple(f"row {row}" for row in rows)
        numbers = [planned.rows[row] for row in rows]
        return tuple(plan.ids(np.array(numbers))) if planned.kind == "image" else tuple(map(str, numbers))

    expected = plan.ids(planned.rows) if plan is not None and planned is not None and planned.bucket else None
    return _check_file(folder, entry, (named, expected), meter)


def _check_file(
    folder: Path,
    entry: Mapping[str, Any],
    samples: tuple[Callable[[Sequence[int]], tuple[str, ...]], list[str] | None] | None,
    meter: _Meter,
) -> list[Damage]:
    """Size, hash, and (with a way to name `samples`, and the ids that are expected) each sample."""
    name = entry["name"]
    path = folder / name
    meter.files += 1
    try:
        size = path.stat().st_size
    except OSError:
        return [Damage(name, "is gone")]
    if size != entry["bytes"]:
        return [Damage(name, f"has {size} bytes instead of {entry['bytes']}")]
    try:
        file = map_columns(path)
    except UserError as error:
        return [Damage(name, str(error).removeprefix(f"{path} ").partition(";")[0])]
    digest, bad = _hash(file, meter)
    if digest == entry["xxh3_128"] and not bad:
        return []
    reason = "its header or a column besides the samples differs from what was written"
    if samples is None:
        return [Damage(name, "differs from what was written")]
    named, expected = samples
    if expected is not None and not bad:
        ids = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in file.columns["id"]]
        bad = [row for row, (one, other) in enumerate(zip(ids, expected, strict=False)) if one != other]
    if bad:
        reason = f"{len(bad)} of {entry['count']} samples differ from what was written"
    return [Damage(name, reason, named(bad))]


def _hash(file: MappedFile, meter: _Meter) -> tuple[str, list[int]]:
    """xxh3_128 of a mapped file, and the rows whose hash is not that in its column xxh3."""
    memory = memoryview(file.memory)
    hasher = xxhash.xxh3_128()
    edges = _edges(file)
    bad: list[int] = []
    done = row = 0
    for end in [*range(_WINDOW, len(memory), _WINDOW), len(memory)]:
        ahead = min(_WINDOW, len(memory) - end)
        if ahead:
            file.memory.madvise(mmap.MADV_WILLNEED, end, ahead)
        hasher.update(memory[done:end])
        while row + 1 < len(edges) and edges[row + 1] <= end:
            digest = xxhash.xxh3_64_intdigest(memory[edges[row] : edges[row + 1]])
            if digest != int(file.columns["xxh3"][row]):
                bad.append(row)
            row += 1
        meter.add(end - done)
        done = end
    return hasher.hexdigest(), bad


def _edges(file: MappedFile) -> list[int]:
    """Where in the file each sample starts, and the last one ends; none if that cannot be told."""
    if "xxh3" not in file.columns or "row" not in file.columns:
        return []
    rows, width = file.columns["row"].shape
    offset = file.columns.get("offset", np.arange(rows + 1))
    # Damaged offsets show in the hash of the file, or of the samples that they cut wrong.
    whole = len(offset) == len(file.columns["xxh3"]) + 1 and (np.diff(offset) >= 0).all()
    if not whole or offset[0] != 0 or offset[-1] != rows:
        return []
    return (file.starts["row"] + offset * width).tolist()
