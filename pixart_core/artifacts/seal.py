"""A folder that knows its own files: sizes and hashes, so that what was cut short or flipped is found."""

import json
from pathlib import Path

import xxhash

from pixart_core.artifacts.publish import write_json

SEAL = "state.json"
_CHUNK = 1 << 22


def seal(folder: Path) -> None:
    """Write `state.json`: bytes and xxh3_128 of every other file in `folder`.

    Raises:
        PixartError: the disk is full.
    """
    files = {
        file.name: {"bytes": file.stat().st_size, "xxh3_128": hash_file(file)}
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != SEAL
    }
    write_json(folder / SEAL, {"schema_version": 1, "files": files})


def check_seal(folder: Path, *, hashes: bool = True) -> None:
    """Compare `folder` with what `seal` wrote; without `hashes` only the sizes.

    Raises:
        ValueError: names the first file that is missing, too short or long, or has other content.
    """
    try:
        files = json.loads((folder / SEAL).read_text())["files"]
        expected = {name: (entry["bytes"], entry["xxh3_128"]) for name, entry in files.items()}
    except FileNotFoundError:
        raise ValueError(f"{SEAL} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{SEAL} cannot be read: {error}") from error
    for name, (size, digest) in expected.items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        if file.stat().st_size != size:
            raise ValueError(f"{name} has {file.stat().st_size} bytes instead of {size}")
        if hashes and hash_file(file) != digest:
            raise ValueError(f"{name} is not what was written: its hash differs")


def hash_file(path: Path) -> str:
    """The xxh3_128 of a file's content, as hex digits."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            hasher.update(part)
    return hasher.hexdigest()
