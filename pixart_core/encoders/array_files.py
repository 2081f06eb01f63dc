"""numpy's `.npy` and `.npz` from the outside: checked before memory is taken for them, never unpickled."""

import io
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from pixart_core.errors import PixartError

_MOST_BYTES = 1 << 30  # of one array: 2,000 times the moments of a picture of 1024 px


class UnusableFeatureError(PixartError):
    """A file holds no features that can be used; the message is the reason."""


def parse_npy(data: bytes, what: str, kinds: str = "f") -> np.ndarray:
    """The numbers of a `.npy` file, read-only; floating-point ones as float32 or float16.

    Args:
        what: names the array in messages.
        kinds: of numbers that are taken: f(loat), i(nteger), u(nsigned), b(ool).

    Raises:
        UnusableFeatureError: cut short, damaged, not numbers, or not finite.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
    except (ValueError, EOFError) as error:
        raise UnusableFeatureError(f"{what} is no .npy ({error})") from error
    if dtype.hasobject or dtype.kind not in kinds:
        raise UnusableFeatureError(f"{what} holds {dtype}, not numbers of a kind that is read here")
    count, start = math.prod(shape), file.tell()
    if len(data) - start != count * dtype.itemsize:
        raise UnusableFeatureError(
            f"{what} has {len(data) - start} bytes instead of {count * dtype.itemsize}: cut short?"
        )
    array = np.frombuffer(data, dtype, count, start).reshape(shape, order="F" if fortran else "C")
    if dtype.kind == "f" and dtype != np.float16:
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise UnusableFeatureError(f"{what} holds values that are not finite")
    return array


def parse_npz(data: bytes, what: str) -> dict[str, bytes]:
    """The `.npy` files of a `.npz`, by name without the suffix.

    Raises:
        UnusableFeatureError: no zip archive, damaged, or too large.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
                raise UnusableFeatureError(f"{what} is larger than {_MOST_BYTES >> 30} GiB")
            return {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise UnusableFeatureError(f"{what} is damaged ({error})") from error


def npy_bytes(array: np.ndarray) -> bytes:
    """`array` as a `.npy` file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        UnusableFeatureError: it is not there or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableFeatureError(f"cannot be read ({error.strerror or error})") from error
