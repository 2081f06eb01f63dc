"""From images lying about to a manifest: look at every one, leave out the unusable ones with a reason."""

import dataclasses
from pathlib import Path

from pixart_core.artifacts.card import Card, card_for, read_card
from pixart_core.artifacts.image_records import StoredRecords
from pixart_core.artifacts.manifest import DROPPED, ImageRecord, Manifest, new_manifest, read_manifest
from pixart_core.data.scan_log import INSPECTED, open_scan_log
from pixart_core.data.scan_run import Scan, label_names
from pixart_core.data.selection import Row, label_of
from pixart_core.data.sources import list_images
from pixart_core.errors import UserError
from pixart_core.launch import Processes
from pixart_core.progress import Progress
from pixart_core.recipe.data import DataOptions

FLAGGED = "flagged.jsonl"
UNUSABLE = "unusable.jsonl"  # the ledger of a scan that ended because of it


def scan_images(options: DataOptions, progress: Progress) -> tuple[Manifest, list[Row]]:
    """Look at the images of `options.data` and say which can be used, without writing anything.

    Returns:
        the manifest (absolute paths; its folder is the data's root), and the ledger's row of each image
        that was left out: path, reason and, of what a filter left out, filter and detail.

    Raises:
        UserError: no data, nothing usable in it, too much unusable, or options that do not fit it.
    """
    if read_card(Path(str(options.data))) is not None:
        return _of_manifest(options), []
    if options.streaming:
        raise UserError("streaming keeps what it reads, and there is no place for it here")
    _check(options)
    with open_scan_log(None) as log:
        scan = Scan(options, list_images(str(options.data)), log)
        scan.run(progress)
        kept: list[ImageRecord] = []
        dropped: list[Row] = []
        for row in scan.rows():
            if isinstance(row, ImageRecord):
                kept.append(row)
            else:
                dropped.append(row)
        return Manifest(scan.listing.root, kept, scan.labels), dropped


def manifest_for(
    step: DataOptions, folder: Path, progress: Progress, processes: Processes = Processes()
) -> Manifest:
    """The manifest of a step's data: `data` itself if it is one, else a scan kept in `folder`.

    A killed scan goes on where it was; a finished one is used again as long as data and options are the
    same, and else looks only at what is new. Same data and options give the same files.

    Args:
        processes: those of the launch; the first scans, the others wait for it.

    Raises:
        UserError: as `scan_images`.
        PixartError: the disk is full, or a stream breaks; what is done is kept.
    """
    options = DataOptions(**{name: getattr(step, name) for name in DataOptions.model_fields})
    if read_card(Path(str(options.data))) is not None:
        return _of_manifest(options)
    if processes.first:
        _check(options)
        card = card_for("manifest", options, {})
        kept = read_card(folder)
        if kept is None or kept["fingerprint"] != card.fingerprint:
            _scan_into(folder, options, card, progress)
    processes.wait()
    return read_manifest(folder)


def _check(options: DataOptions) -> None:
    if options.heldout_keys and not options.heldout_fraction:
        raise UserError("heldout_keys says what is held out together; give heldout_fraction as well")


def _scan_into(folder: Path, options: DataOptions, card: Card, progress: Progress) -> None:
    if options.streaming:
        from pixart_core.data.streams import list_stream  # `datasets` takes seconds to import

        listing = list_stream(str(options.data), folder)
    else:
        listing = list_images(str(options.data))
    with open_scan_log(folder) as log:
        scan = Scan(options, listing, log)
        scan.run(progress, folder / UNUSABLE)
        heldout = 0
        with new_manifest(folder) as writer:
            for row in scan.rows():
                if isinstance(row, ImageRecord):
                    heldout += row.split == "heldout"
                    writer.keep(row)
                else:
                    writer.drop(row)
        scan.write_flags(folder / FLAGGED)
        (folder / UNUSABLE).unlink(missing_ok=True)
        log.publish(folder / INSPECTED, scan.keys())
        if scan.left_out:
            progress.say(f"what was left out is listed in {folder / DROPPED}")
    dataclasses.replace(card, details=scan.details() | {"heldout": heldout}).write(folder)


def _of_manifest(options: DataOptions) -> Manifest:
    """A manifest as data: `limit` is applied, and `label_key` if it has no labels yet."""
    folder = Path(str(options.data))
    manifest = read_manifest(folder)
    if options.heldout_fraction or options.heldout_keys:
        raise UserError(f"{folder} is a manifest and says what is held out; leave heldout_fraction out")
    for name in ("streaming", "filters", "tokenizer", "exclude"):
        if getattr(options, name) != DataOptions.model_fields[name].default:
            raise UserError(f"{folder} is a manifest and was filtered when it was made; leave {name} out")
    manifest = dataclasses.replace(manifest, records=manifest.records[: options.limit])
    return manifest if options.label_key is None else _labelled(manifest, options.label_key)


def _labelled(manifest: Manifest, key: str) -> Manifest:
    if manifest.label_names:
        raise UserError(f"{manifest.folder} is a manifest with labels; leave label_key out")
    names = label_names({label_of(record.meta.get(key)) for record in manifest.records})
    if not names:
        known = {name for record in manifest.records[:1000] for name in record.meta}
        listed = ", ".join(sorted(known)) or "no JSON"
        raise UserError(f"{manifest.folder}: no image has label_key {key!r} in its JSON (there is: {listed})")
    index = {name: number for number, name in enumerate(names)}

    def label(record: ImageRecord) -> ImageRecord:
        value = label_of(record.meta.get(key))
        return dataclasses.replace(record, label=None if value is None else index[value])

    assert isinstance(manifest.records, StoredRecords)
    return dataclasses.replace(manifest, records=manifest.records.changed(label), label_names=names)
