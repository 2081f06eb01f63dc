"""How many images data hold, by names and the headers of archives alone (for `--dry-run`)."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from pixart_core.artifacts.patterns import expand_pattern, is_pattern

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
MOST_MEMBERS = 100_000  # of archives: a header takes a read, a million of them too long for a dry run


def count_images(data: str, limit: int | None = None) -> tuple[int | None, str]:
    """(images, "") or (None, why they are not counted; "" if the data are not there yet).

    Of a manifest its lines, of folders and tars the names with the suffix of an image (of a tar, one for
    each key), of parquet files the rows. They may be fewer when they are opened.

    Args:
        limit: no more are counted.
    """
    if data.startswith("hf:"):
        return None, "data of the hub are not counted"
    count = 0
    try:
        for found in _counts(data):
            count += found
            if limit is not None and count >= limit:
                return limit, ""
    except _TooManyError:
        return None, f"more than {MOST_MEMBERS:,} files in archives are not counted; give a limit"
    except (OSError, ValueError, tarfile.TarError, ImportError) as error:
        return None, f"cannot be counted: {error}"
    return count or None, ""


class _TooManyError(Exception):
    """Too many members to look at."""


def _counts(data: str) -> Iterator[int]:
    """Images, some at a time."""
    folder, members = Path(data), [0]
    for manifest in (folder / "manifest.jsonl", folder / "manifest" / "manifest.jsonl"):
        if manifest.is_file():
            with manifest.open("rb") as lines:
                yield sum(1 for _ in lines)
            return
    if folder.is_dir():
        for place, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
            for name in names:
                if not name.startswith("."):
                    yield from _of_file(Path(place, name), members)
        return
    for path in [folder] if folder.is_file() else expand_pattern(data) if is_pattern(data) else []:
        yield from _of_file(path, members)


def _of_file(path: Path, members: list[int]) -> Iterator[int]:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        yield 1
    elif suffix == ".tar":
        yield from _of_tar(path, members)
    elif suffix == ".parquet" and path.name != "metadata.parquet":
        import pyarrow.parquet  # large

        yield int(pyarrow.parquet.read_metadata(path).num_rows)


def _of_tar(path: Path, members: list[int]) -> Iterator[int]:
    keys: set[str] = set()
    with tarfile.open(path, "r:") as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps them all
            members[0] += 1
            if members[0] > MOST_MEMBERS:
                raise _TooManyError
            folder, base = os.path.split(info.name)
            key = os.path.join(folder, base.split(".", 1)[0])
            image = os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES and not base.startswith(".")
            if info.isreg() and image and key not in keys:  # x.mask.png beside x.png is another field
                keys.add(key)
                yield 1
