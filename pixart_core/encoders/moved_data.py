"""The images of a manifest that was made elsewhere, when the data have moved since."""

import dataclasses
from pathlib import Path

from pixart_core.artifacts.image_records import StoredRecords
from pixart_core.artifacts.manifest import ImageRecord, Manifest, manifest_folder, read_manifest
from pixart_core.artifacts.patterns import fixed_part, is_pattern
from pixart_core.errors import UserError

_ARCHIVES = (".tar", ".parquet")


def manifest_of_store(folder: Path, was: str, now: str | None) -> Manifest:
    """The manifest that the store in `folder` was made of.

    Args:
        was: the data as the card says.
        now: where they are today, if not there.

    Raises:
        UserError: they are gone.
    """
    place = now or was
    if not place.startswith("hf:") and not is_pattern(place) and not Path(place).exists():
        hint = "say where they are now with --data" if now is None else "--data must be where they are now"
        raise UserError(f"{place}: the data that {folder} was made of are not there; {hint}")
    kept = manifest_folder(folder / "manifest")
    if kept is None:
        return read_manifest(place)
    manifest = read_manifest(kept)
    if now is None:
        return manifest
    assert isinstance(manifest.records, StoredRecords)
    return dataclasses.replace(manifest, records=manifest.records.changed(_Move(was, now)))


class _Move:
    """Replaces the place of the data at the beginning of each record's path."""

    def __init__(self, was: str, now: str) -> None:
        self._hub: str | None = None
        if now.startswith("hf:"):
            from pixart_core.data.hub import HubRows  # `datasets` takes seconds to import

            self._hub = HubRows.open(now).source
        else:
            self._was, self._now = _root(was), _root(now)

    def __call__(self, record: ImageRecord) -> ImageRecord:
        if self._hub is not None:
            return dataclasses.replace(record, path=self._hub)
        path = Path(record.path)
        if not path.is_relative_to(self._was):
            return record
        return dataclasses.replace(record, path=str(self._now / path.relative_to(self._was)))


def _root(source: str) -> Path:
    """The folder that the files of `source` lie in, whether it is still there or not."""
    if is_pattern(source):
        return fixed_part(source)
    path = Path(source).absolute()
    return path.parent if path.suffix in _ARCHIVES and not path.is_dir() else path
