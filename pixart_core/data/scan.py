"""From images lying about to a manifest: look at every one, drop the unusable ones with a reason."""

import collections
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pixart_core.artifacts.card import card_for, read_card
from pixart_core.artifacts.manifest import ImageRecord, Manifest, read_dropped, read_manifest, write_manifest
from pixart_core.data.images import UnusableImageError, decode_image
from pixart_core.data.sources import Candidate, list_images
from pixart_core.errors import UserError
from pixart_core.launch import Processes
from pixart_core.progress import Progress
from pixart_core.recipe.data import DataOptions

_LOOK_AHEAD = 256  # images in the hands of the decoding threads; also how far a `limit` reads on

Dropped = list[dict[str, str]]


def scan_images(
    data: str,
    *,
    limit: int | None = None,
    heldout_fraction: float = 0.0,
    heldout_keys: Sequence[str] = (),
    label_key: str | None = None,
    max_bad_fraction: float = 0.05,
    progress: Progress,
) -> tuple[Manifest, Dropped]:
    """Look at the images of `data` and say which can be used: a pure function of the data and the options.

    Args:
        data: folder, tar(s), glob, `hf:ID[/split]` (see `sources`), or the folder of a manifest. A manifest
            says itself what is held out: with one, `heldout_fraction` and `heldout_keys` are refused,
            `limit` is applied, and `label_key` only if it has no labels yet.
        limit: the first so many usable images.
        heldout_fraction: share of the images (of the combinations, with `heldout_keys`) that is held out.
        heldout_keys: fields of the samples' JSON; images that agree in all of them share their split.
        label_key: field of the samples' JSON that is the class.
        max_bad_fraction: more unusable images than this share of all there are end the scan.

    Returns:
        the manifest (absolute paths; its folder is the data's root), and {"path", "reason"} of each
        image that was dropped.

    Raises:
        UserError: no data, nothing usable in it, too much unusable, or options that do not fit it.
    """
    if heldout_keys and not heldout_fraction:
        raise UserError("heldout_keys says what is held out together; give heldout_fraction as well")
    if read_card(Path(data)) is not None:
        return _of_manifest(Path(data), limit, heldout_fraction, label_key)
    listing = list_images(data)
    dropped: Dropped = [dict(row) for row in listing.dropped]
    records: list[ImageRecord] = []
    total = len(listing.candidates)
    most_bad = max_bad_fraction * (len(dropped) + total)  # known before the end, whatever follows
    progress.start("scan", min(total, limit or total))
    for candidate, result in _inspect_all(listing.candidates):
        if isinstance(result, ImageRecord):
            records.append(result)
            progress.advance("scan")
        else:
            dropped.append({"path": candidate.name, "reason": result})
            if len(dropped) > most_bad:
                break
        if len(records) == limit:
            break
    progress.finish("scan")
    if not records or len(dropped) > most_bad:
        raise UserError(_too_bad(data, records, dropped, max_bad_fraction))
    records = _with_splits(records, heldout_fraction, heldout_keys)
    records, names = _with_labels(data, records, label_key)
    return Manifest(listing.root, tuple(records), names), dropped


def manifest_for(
    step: DataOptions, folder: Path, progress: Progress, processes: Processes = Processes()
) -> Manifest:
    """The manifest of a step's data: `data` itself if it is one, else a scan kept in `folder`.

    A killed run that comes again finds the scan there, as long as data and options are the same.

    Args:
        processes: those of the launch; the first scans, the others wait for it.
    """
    options = {name: getattr(step, name) for name in DataOptions.model_fields}
    for name in ("streaming", "filters", "tokenizer", "exclude"):  # not built yet
        if options.pop(name) != DataOptions.model_fields[name].get_default(call_default_factory=True):
            raise UserError(f"{name}: not available yet")
    if read_card(Path(str(step.data))) is not None:
        return scan_images(**options, progress=progress)[0]
    if not processes.first:
        processes.wait()
        return read_manifest(folder)
    manifest = _scanned(step, options, folder, progress)
    processes.wait()
    return manifest


def _scanned(step: DataOptions, options: dict[str, Any], folder: Path, progress: Progress) -> Manifest:
    card = card_for("manifest", DataOptions(**options), {})
    kept = read_card(folder)
    if kept is not None and kept["fingerprint"] == card.fingerprint:
        return read_manifest(folder)
    manifest, dropped = scan_images(**options, progress=progress)
    reasons = collections.Counter(row["reason"] for row in dropped)
    details = {
        "images": len(manifest.records),
        "heldout": len(manifest.split("heldout")),
        "dropped": len(dropped),
        "reasons": dict(sorted(reasons.items())),
        "label_names": list(manifest.label_names),
    }
    if dropped:
        progress.say(
            f"left out {len(dropped)} of {len(dropped) + len(manifest.records)}: {_reasons(dropped)}"
        )
    write_manifest(folder, manifest.records, dropped, dataclasses.replace(card, details=details))
    return read_manifest(folder)


def _of_manifest(
    folder: Path, limit: int | None, heldout_fraction: float, label_key: str | None
) -> tuple[Manifest, Dropped]:
    manifest = read_manifest(folder)
    if heldout_fraction:
        raise UserError(f"{folder} is a manifest and says what is held out; leave heldout_fraction out")
    if label_key and manifest.label_names:
        raise UserError(f"{folder} is a manifest with labels; leave label_key out")
    root = Path(os.path.abspath(folder))
    records = [_absolute(record, root) for record in manifest.records[:limit]]
    names = manifest.label_names
    if label_key:
        records, names = _with_labels(str(folder), records, label_key)
    return Manifest(root, tuple(records), names), read_dropped(folder)


def _absolute(record: ImageRecord, root: Path) -> ImageRecord:
    if record.path.startswith("hf:"):
        return record
    return dataclasses.replace(record, path=str(root / record.path))


def _inspect_all(candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, ImageRecord | str]]:
    """Decode ahead in threads (Pillow decodes without the interpreter's lock), in the order given."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(candidates), _LOOK_AHEAD):
            chunk = candidates[start : start + _LOOK_AHEAD]
            yield from zip(chunk, pool.map(_inspect, chunk), strict=True)


def _inspect(candidate: Candidate) -> ImageRecord | str:
    """The record of an image (no label, not split yet), or why it cannot be used."""
    try:
        image = decode_image(candidate.image())
        caption, meta = candidate.text()
    except (UnusableImageError, UserError) as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    width, height = image.size
    return ImageRecord(
        id=candidate.id, path=candidate.path, member=candidate.member, width=width, height=height,
        caption=caption, label=None, split="train", meta=meta,
    )  # fmt: skip


def _with_splits(records: Sequence[ImageRecord], fraction: float, keys: Sequence[str]) -> list[ImageRecord]:
    """Hold out by a hash of the id, or of the values of `keys`: stable when images are added."""
    for key in keys:
        if not any(key in record.meta for record in records):
            raise UserError(
                f"heldout_keys: no image has {key!r} in its JSON (there is: {_known_keys(records)})"
            )

    def heldout(record: ImageRecord) -> bool:
        text = "\x1f".join(str(record.meta.get(key)) for key in keys) if keys else record.id
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=b"heldout")
        return int.from_bytes(digest.digest(), "big") < fraction * 2**64

    return [dataclasses.replace(r, split="heldout" if heldout(r) else "train") for r in records]


def _with_labels(
    data: str, records: Sequence[ImageRecord], key: str | None
) -> tuple[list[ImageRecord], tuple[str, ...]]:
    """Labels by the sorted values of `key`, over all splits; an image without one has label None."""
    if key is None:
        return list(records), ()
    values = [_plain(record.meta.get(key)) for record in records]
    present = {value for value in values if value is not None}
    if not present:
        raise UserError(
            f"{data}: no image has label_key {key!r} in its JSON (there is: {_known_keys(records)})"
        )
    # Numbers in the order of numbers, names in that of names.
    order = sorted(
        present, key=lambda value: (not value.isdecimal(), value.isdecimal() and int(value), value)
    )
    index = {value: number for number, value in enumerate(order)}
    labelled = [
        dataclasses.replace(record, label=None if value is None else index[value])
        for record, value in zip(records, values, strict=True)
    ]
    return labelled, tuple(order)


def _plain(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) else None


def _known_keys(records: Sequence[ImageRecord]) -> str:
    keys = set(itertools.chain.from_iterable(record.meta for record in records))
    return ", ".join(sorted(keys)) or "no JSON"


def _too_bad(data: str, records: Sequence[ImageRecord], dropped: Dropped, allowed: float) -> str:
    seen = len(records) + len(dropped)
    if not records:
        return f"{data}: none of the first {seen} images can be used: {_reasons(dropped)}"
    return (
        f"{data}: {len(dropped)} of the first {seen} images cannot be used: {_reasons(dropped)}; "
        f"mend them or raise max_bad_fraction ({allowed:g})"
    )


def _reasons(dropped: Dropped) -> str:
    """The commonest reasons, each with one example."""
    counts = collections.Counter(row["reason"] for row in dropped)
    example = {row["reason"]: row["path"] for row in reversed(dropped)}
    parts = [f"{reason} ({count}, e.g. {example[reason]})" for reason, count in counts.most_common(3)]
    more = len(counts) - len(parts)
    return "; ".join(parts) + (f"; and {more} other reasons" if more else "")
