"""What a folder holds, to compare folders byte by byte."""

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """Name and content of every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
