"""What tests of scans share: options that filter and hold out, and what a scan wrote."""

from pathlib import Path
from typing import Any

from pixart_core.recipe.data import DataOptions

OPTIONS = {
    "max_bad_fraction": 0.5,
    "heldout_fraction": 0.2,
    "filters": {"exact_duplicates": "pixels", "near_duplicates": 2, "min_size": 9},
}


def options(data: Path, **changes: Any) -> DataOptions:
    """`OPTIONS` for `data`, with changes."""
    return DataOptions.model_validate({"data": str(data), **OPTIONS, **changes})


def content(folder: Path) -> dict[str, bytes]:
    """Name and content of everything in `folder`."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
