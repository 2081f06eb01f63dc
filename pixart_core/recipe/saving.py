"""Options of saving a training, and how a length of time is written."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

# Fields of `TrainStep` that no weight depends on.
SAVING = frozenset(
    {
        "checkpointing_steps",
        "checkpointing_minutes",
        "checkpoints_total_limit",
        "checkpoints_keep_every",
        "log_every",
        "max_train_time",
    }
)
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_UNITED = re.compile(r"(?:\d+(?:\.\d+)?\s*[dhms]\s*)+", re.IGNORECASE)
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([dhms])", re.IGNORECASE)
_SLURM = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def duration_seconds(text: str) -> float:
    """Seconds of "3h50m", "1d 12h", "90" (minutes), or one of SLURM's forms.

    Those are M, M:S, H:M:S, D-H, D-H:M and D-H:M:S (sbatch's `--time`).

    Raises:
        ValueError: none of them, or no time at all.
    """
    text = text.strip()
    seconds = 0.0
    if _UNITED.fullmatch(text):
        seconds = sum(float(number) * _UNITS[unit.lower()] for number, unit in _PART.findall(text))
    elif match := _SLURM.fullmatch(text):
        days, *rest = match.groups()
        numbers = [int(part) for part in rest if part is not None]
        if days is not None:  # hours first
            numbers += [0] * (3 - len(numbers))
        elif len(numbers) < 3:  # minutes first
            numbers = [0, *numbers, *([0] if len(numbers) == 1 else [])]
        seconds = int(days or 0) * 86400 + numbers[0] * 3600 + numbers[1] * 60 + numbers[2]
    else:
        raise ValueError(f"{text!r} is no length of time; write 3h50m, 90m, minutes, or 1-12:00:00 as SLURM")
    if seconds <= 0:
        raise ValueError("no time at all")
    return seconds


def _duration(value: Any) -> Any:
    """`duration_seconds` of it as text with units, which reads as the same again."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("write a length of time: 3h50m, 90m, minutes, or 1-12:00:00 as SLURM")
    left = duration_seconds(value if isinstance(value, str) else f"{value:f}m")
    parts = []
    for unit, size in _UNITS.items():
        count = left if unit == "s" else left // size
        left -= count * size
        if count:
            parts.append(f"{count:g}{unit}")
    return "".join(parts)


Duration = Annotated[str, BeforeValidator(_duration)]
