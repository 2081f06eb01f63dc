"""Tar archives read at random: where each member lies, found once, without unpacking."""

import dataclasses
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

from pixart_core.errors import UserError


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The plain files of an archive, in its order.

    Attributes:
        members: name → (offset of the data, bytes). Of a repeated name the first counts.
        damage: why the archive ended early or is not whole, None when it is sound.
        repeated: names that came again.
    """

    members: Mapping[str, tuple[int, int]]
    damage: str | None = None
    repeated: tuple[str, ...] = ()


def index_tar(path: Path) -> TarIndex:
    """Read the headers of an uncompressed tar archive.

    A cut-off or damaged archive gives what can be read of it, and `damage` says so: Python's
    tarfile ends silently at a broken header.

    Raises:
        UserError: no such file, or not an uncompressed tar archive.
    """
    members: dict[str, tuple[int, int]] = {}
    repeated: list[str] = []
    damage: str | None = None
    try:
        with tarfile.open(path, "r:") as archive:
            try:
                while (info := archive.next()) is not None:
                    if info.isreg() and not info.issparse():
                        if info.name in members:
                            repeated.append(info.name)
                        else:
                            members[info.name] = (info.offset_data, info.size)
                    # tarfile remembers every header it has seen; at millions of members that is memory.
                    archive.members = []  # type: ignore[attr-defined]
            except (tarfile.TarError, OSError) as error:
                damage = f"archive ends early: {error}"
            damage = damage or _damage_at(path, archive.offset)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: not an uncompressed tar archive ({error})") from error
    return TarIndex(members, damage, tuple(repeated))


def _damage_at(path: Path, end: int) -> str | None:
    """What is wrong where reading stopped: an archive ends with zeros, and only zeros follow."""
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
        if not block:
            return "archive ends without its end mark (cut off?)"
        if block.strip(b"\0"):
            return f"archive has a damaged header at byte {end}"
        while block := file.read(1 << 20):
            if block.strip(b"\0"):
                return f"archive has data after its end mark at byte {end} (tars put together?)"
    return None


def read_member(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes of an archive from `offset`, opened for this alone: for reading in order, once."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return _read_at(descriptor, offset, size)
    finally:
        os.close(descriptor)


def read_known_member(path: Path, name: str, offset: int, size: int) -> bytes | None:
    """The bytes of the member `name` if it still lies at `offset`, by one read; None if it does not.

    Raises:
        OSError: the archive cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        start = offset - tarfile.BLOCKSIZE
        data = _read_at(descriptor, start, tarfile.BLOCKSIZE + size) if start >= 0 else b""
    finally:
        os.close(descriptor)
    header, data = data[: tarfile.BLOCKSIZE], data[tarfile.BLOCKSIZE :]
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    # Of names that are long or not ASCII, the header holds what fits; the whole name stands before it.
    stored = header[: tarfile.LENGTH_NAME].rstrip(b"\0")
    cut = [name.encode(*how)[: tarfile.LENGTH_NAME] for how in (("utf-8", "replace"), ("ascii", "replace"))]
    return data if (info.name == name or stored in cut) and info.size == size else None


def _read_at(descriptor: int, offset: int, size: int) -> bytes:
    pieces = []
    # One read returns at most 2 GiB, and nothing at the end of a cut-off archive.
    while size > 0 and (piece := os.pread(descriptor, size, offset)):
        pieces.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    return b"".join(pieces)


class TarReader:
    """One open archive: `read(name)` is a single positioned read, safe in threads and after a fork."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = index_tar(path)
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, name: str) -> bytes:
        """The bytes of a member; fewer than its size if the archive is cut off.

        Raises:
            UserError: no such member.
        """
        try:
            offset, size = self.index.members[name]
        except KeyError as error:
            raise UserError(f"{self.path}: has no member {name!r}; was it written anew?") from error
        return _read_at(self._descriptor, offset, size)

    def close(self) -> None:
        """Release the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.close()
