"""One launch at a time in a folder."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from pixart_core.errors import PixartError, UserError

_LOCK = ".lock"
# What file systems without locks answer (some network and FUSE ones).
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


@contextlib.contextmanager
def only_launch(folder: Path, warn: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold `folder` for this launch; its first process calls this around everything that it writes.

    The system frees it when the process ends, however it ends. A folder that nothing was written into goes
    as it came.

    Args:
        warn: told when the file system has no locks; then nothing is held.

    Raises:
        UserError: another launch holds it; names its process and host.
    """
    path, there = folder / _LOCK, folder.exists()
    handle = _open_locked(folder, path, warn)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
            if not there:
                folder.rmdir()
        os.close(handle)


def _open_locked(folder: Path, path: Path, warn: Callable[[str], None] | None) -> int:
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # the holder took its empty folder away
        except OSError as error:
            raise PixartError(f"cannot write {path}: {error.strerror or error}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                if warn is not None:
                    warn(f"{folder}: its file system has no locks; do not start a second run on it")
                return handle
            owner = os.read(handle, 300).decode(errors="replace").strip()
            os.close(handle)
            raise UserError(
                f"{folder}: another run is writing to it{f' ({owner})' if owner else ''}; "
                "wait for it or choose another output"
            ) from error
        # Whoever held it before may have removed the file meanwhile; then ours locks nothing.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)
