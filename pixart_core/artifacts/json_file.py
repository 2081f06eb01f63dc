"""Read JSON that others may have damaged."""

import json
from pathlib import Path
from typing import Any

from pixart_core.errors import UserError


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """The JSON object in `path`.

    Args:
        expected: what should be there, for the message of a missing file.

    Raises:
        UserError: no such file, or damaged.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {expected}") from error
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return value
