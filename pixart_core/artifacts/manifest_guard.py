"""Keeps the manifest of a folder until what is made of a new one is accepted."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pixart_core.artifacts.card import CARD
from pixart_core.artifacts.manifest import DROPPED, MANIFEST
from pixart_core.errors import PixartError

_NAMES = (MANIFEST, DROPPED, CARD)  # the card last: its copy says that all are kept


@contextlib.contextmanager
def manifest_kept_on_failure(folder: Path) -> Iterator[None]:
    """Put the manifest in `folder` back when the block raises, or was killed: then by the next call.

    A store that refuses other data goes on holding the manifest that it was made of. Without a whole
    manifest in `folder`, nothing is kept and nothing put back.

    Raises:
        PixartError: the folder cannot be written.
    """
    try:
        _put_back(folder)
        _keep(folder)
    except OSError as error:
        raise PixartError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # the next call does it
            _put_back(folder)
        raise
    _forget(folder)


def _copy(folder: Path, name: str) -> Path:
    return folder / f".{name}.kept"


def _keep(folder: Path) -> None:
    if not (folder / CARD).exists():
        return
    for name in _NAMES:
        # Files are replaced, never changed in place, so a second name keeps the content.
        try:
            os.link(folder / name, _copy(folder, name))
        except FileNotFoundError:
            continue
        except OSError:
            shutil.copyfile(folder / name, _copy(folder, name))


def _put_back(folder: Path) -> None:
    if not _copy(folder, CARD).exists():
        _forget(folder)
        return
    (folder / CARD).unlink(missing_ok=True)
    for name in _NAMES:
        if _copy(folder, name).exists():
            _copy(folder, name).replace(folder / name)
            # Of two names of one file, rename leaves both.
            _copy(folder, name).unlink(missing_ok=True)


def _forget(folder: Path) -> None:
    for name in reversed(_NAMES):
        _copy(folder, name).unlink(missing_ok=True)
