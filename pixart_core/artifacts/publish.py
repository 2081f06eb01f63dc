"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixart_core.errors import PixartError, UserError


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a name beside `path`; the file written there is fsynced and renamed to `path` at the end.

    Raises:
        PixartError: the disk is full or the folder cannot be written; `path` is untouched.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise PixartError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, fsync it, and rename it into place.

    Raises:
        PixartError: the disk is full or the folder cannot be written; `path` is untouched.
    """
    with staged_file(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text (UTF-8)."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as `json_text`, atomically."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Indented JSON with sorted keys and a final newline."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that becomes `path` when the block ends without an error.

    An existing `path` is replaced only then. After an error nothing is left (a full disk has its room back);
    what a killed run left is cleared on the next try.
    """
    restore_replaced(path)
    staging = path.with_name(f".{path.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        yield staging
        _flush(staging)
        if path.exists():
            old = _replaced(path)
            path.rename(old)
            staging.rename(path)
            shutil.rmtree(old)
        else:
            staging.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise PixartError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def restore_replaced(path: Path) -> None:
    """Bring back the folder `path` if a run was killed while it put another in its place.

    The old content is in `.NAME.old` then and `path` is gone; beside a `path` it is only rubbish.

    Raises:
        PixartError: the folder cannot be written.
    """
    old = _replaced(path)
    if not old.is_dir():
        return
    try:
        if path.exists():
            shutil.rmtree(old)
        else:
            old.rename(path)
    except OSError as error:
        raise PixartError(f"cannot write {path}: {error.strerror or error}") from error


def check_writable(path: Path) -> None:
    """Try whether `path` could be made (or, if it is there, written into); nothing of it stays.

    Raises:
        UserError: the nearest folder that exists takes no new entry.
    """
    folder = next(place for place in (path, *path.absolute().parents) if place.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".pixart-", dir=folder))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return  # a failure, not a mistake; whoever writes says so
        reason = error.strerror or error
        raise UserError(f"cannot write to {path} ({folder}: {reason}); choose another output") from error


def _flush(folder: Path) -> None:
    """Put every file of `folder` on the disk: a power cut shall not leave an empty one under its name."""
    for entry in (folder, *folder.rglob("*")):
        if entry.is_dir():
            sync_folder(entry)
        elif entry.is_file():
            with entry.open("rb") as opened:
                os.fsync(opened.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` last through a power cut.

    Raises:
        PixartError: the disk fails.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise PixartError(f"cannot write {folder}: {error.strerror or error}") from error


def _replaced(path: Path) -> Path:
    """Where the folder `path` lies while another takes its place."""
    return path.with_name(f".{path.name}.old")
