"""Detections that the official code dumped: the only ones whose scores compare with published ones.

JSON Lines, one image a line: `{"image": file name, "labels": [...], "scores": [...], "boxes": [[left, top,
right, bottom], ...]}`, boxes in pixels of the frame (`boxes.frame_of`), as the official code has them. A line
`{"vocabulary": [...]}` may name all labels that the detector knows.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pixart_core.errors import UserError
from pixart_core.evaluation.compbench.boxes import Box


@dataclasses.dataclass(frozen=True)
class Detections:
    """Boxes by image file.

    Attributes:
        vocabulary: all labels of the detector; None if the file does not tell.
    """

    path: Path
    boxes: dict[str, tuple[Box, ...]]
    vocabulary: frozenset[str] | None

    def of(self, names: Sequence[str]) -> tuple[Box, ...]:
        """The boxes of an image, highest score first.

        Args:
            names: what the image may be called in the file.

        Raises:
            UserError: none of them is there.
        """
        for name in names:
            if name in self.boxes:
                return self.boxes[name]
        raise UserError(
            f"{self.path} has no detections of {names[0]} ({len(self.boxes)} images); dump them for all"
        )


def read_detections(path: Path) -> Detections:
    """Read a dump; images are known by their path and by their bare name.

    Raises:
        UserError: no such file, or a line that is not as described (named).
    """
    boxes: dict[str, tuple[Box, ...]] = {}
    vocabulary = None
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"compbench.detections: {path} cannot be read ({error})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "vocabulary" in row:
                vocabulary = frozenset(str(label) for label in row["vocabulary"])
                continue
            found = _boxes(row)
            name = str(row["image"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}:{number}: no detections of an image ({error!r})") from error
        boxes[name] = found
        boxes.setdefault(Path(name).name, found)
    if not boxes:
        raise UserError(f"{path} holds no detections")
    return Detections(path, boxes, vocabulary)


def _boxes(row: Any) -> tuple[Box, ...]:
    found = [
        Box(str(label), _score(score), _sides(sides))
        for label, score, sides in zip(row["labels"], row["scores"], row["boxes"], strict=True)
    ]
    # Stable: the official detector sorts by score already, and ties keep its order.
    return tuple(sorted(found, key=lambda box: -box.score))


def _score(value: Any) -> float:
    score = float(value)
    if not 0 <= score <= 1:
        raise ValueError(f"a score of {score}")
    return score


def _sides(values: Any) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(value) for value in values)
    if not (left <= right and top <= bottom):
        raise ValueError(f"a box {list(values)}")
    return left, top, right, bottom
