"""Boxes that a detector found, in the frame that the benchmark's rules count pixels in."""

import dataclasses

from PIL import Image

_SHORT, _LONG = 479, 480  # pixels: torchvision's Resize(479, max_size=480), before the official detector


@dataclasses.dataclass(frozen=True)
class Box:
    """An object that was found.

    Attributes:
        score: of the detector, in 0..1.
        xyxy: left, top, right, bottom in pixels of `frame_of` the image.
    """

    label: str
    score: float
    xyxy: tuple[float, float, float, float]

    @property
    def center(self) -> tuple[float, float]:
        left, top, right, bottom = self.xyxy
        return (left + right) / 2, (top + bottom) / 2


def frame_of(width: int, height: int) -> tuple[int, int]:
    """(width, height) of an image after the resizing that comes before the official detector."""
    short, long = sorted((width, height))
    new_short, new_long = _SHORT, int(_SHORT * long / short)
    if new_long > _LONG:
        new_short, new_long = int(_LONG * new_short / new_long), _LONG
    return (new_short, new_long) if width <= height else (new_long, new_short)


def in_frame(image: Image.Image) -> Image.Image:
    """`image` resized to its frame, bilinear with antialiasing as torchvision does on PIL images."""
    return image.resize(frame_of(*image.size), Image.Resampling.BILINEAR)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union; 0 for boxes without area."""
    shared = _shared(a, b)
    union = _area(a) + _area(b) - shared
    return shared / union if union > 0 else 0.0


def without_duplicates(boxes: list[Box]) -> list[Box]:
    """The boxes without those that lie on an earlier one of the same label: IoU, or one inside the other,
    over 0.9, in whole pixels that count both ends."""
    kept: list[Box] = []
    for box in boxes:
        if not any(box.label == other.label and _lies_on(box, other) for other in kept):
            kept.append(box)
    return kept


def _lies_on(a: Box, b: Box) -> bool:
    shared, first, second = _shared(a, b, 1), _area(a, 1), _area(b, 1)
    return shared / (first + second - shared) > 0.9 or shared / first > 0.9 or shared / second > 0.9


def _shared(a: Box, b: Box, both_ends: int = 0) -> float:
    width = min(a.xyxy[2], b.xyxy[2]) - max(a.xyxy[0], b.xyxy[0]) + both_ends
    height = min(a.xyxy[3], b.xyxy[3]) - max(a.xyxy[1], b.xyxy[1]) + both_ends
    return max(0.0, width) * max(0.0, height)


def _area(box: Box, both_ends: int = 0) -> float:
    left, top, right, bottom = box.xyxy
    return (right - left + both_ends) * (bottom - top + both_ends)
