"""Boxes and depths of images: dumped by the official code, or asked of models here."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from pixart_core.artifacts.card import fingerprint
from pixart_core.evaluation.caches import Caches
from pixart_core.evaluation.compbench.boxes import Box
from pixart_core.evaluation.compbench.depth import DepthModel, mean_depth, read_depth
from pixart_core.evaluation.compbench.detections import Detections
from pixart_core.evaluation.compbench.detectors import Detector
from pixart_core.evaluation.compbench.prompts import Prompt
from pixart_core.evaluation.compbench.work import Asker, Item, Work
from pixart_core.evaluation.pictures import Picture


@dataclasses.dataclass(frozen=True)
class DumpedBoxes:
    """Boxes that the official detector wrote."""

    dump: Detections

    def of(self, item: Item) -> Sequence[Box]:
        """Raises:
        UserError: the dump lacks the image."""
        return self.dump.of(item.names)


class BoxAsker(Asker):
    """Looks for all objects of a category in every image, so that all are asked the same."""

    def __init__(self, work: Work, detector: Detector, labels: Sequence[str], caches: Caches) -> None:
        super().__init__(work)
        self._detector, self._labels = detector, labels
        self._question = fingerprint(list(labels))
        self._answers = caches.answers(f"{detector.name}-{detector.weights}")

    def has_answers(self, item: Item, digest: str) -> bool:
        return (digest, self._question) in self._answers

    def ask(self, batch: Sequence[tuple[Item, Picture]], threads: Executor) -> None:
        for item, picture in batch:
            if not self.has_answers(item, picture.digest):
                found = self._detector.detect(picture.image, self._labels)
                rows = [[box.label, box.score, box.xyxy] for box in found]
                self._answers.append([(picture.digest, self._question, rows)])

    def refresh(self) -> None:
        self._answers.refresh()

    def of(self, item: Item) -> Sequence[Box]:
        """The boxes in an image that was looked at."""
        rows = self._answers.answer(self.digest_of(item), self._question)
        return [Box(label, score, tuple(sides)) for label, score, sides in rows]


def boxes_of(
    work: Work, source: Detections | Detector, labels: Sequence[str], caches: Caches
) -> DumpedBoxes | BoxAsker:
    """Where the boxes of a category come from."""
    if isinstance(source, Detections):
        return DumpedBoxes(source)
    return BoxAsker(work, source, labels, caches)


Boxes = Callable[[Item], Sequence[Box]]


class StoredDepths:
    """Depth maps that the official code stored."""

    def __init__(self, folder: Path, boxes: Boxes) -> None:
        """Args: boxes: of an image, whose depths are wanted."""
        self._folder, self._boxes = folder, boxes
        self._means: dict[tuple[int, tuple[Prompt, ...]], dict[str, float]] = {}

    def of(self, item: Item) -> dict[str, float]:
        """{pixels of a box: mean depth}.

        Raises:
            UserError: the folder lacks the image's map, or it cannot be read.
        """
        key = (item.number, item.prompts)
        if key not in self._means:
            boxes = self._boxes(item)
            depth = read_depth(self._folder, item.names) if boxes else np.empty((0, 0), dtype=np.float32)
            self._means[key] = {pixels_of(box): mean_depth(depth, box) for box in boxes}
        return self._means[key]


class DepthAsker(Asker):
    """Estimates the depth of every image, and keeps the means of the boxes."""

    def __init__(self, work: Work, depth: DepthModel, boxes: Boxes, caches: Caches) -> None:
        super().__init__(work)
        self._depth, self._boxes = depth, boxes
        self._answers = caches.answers(depth.key)

    def has_answers(self, item: Item, digest: str) -> bool:
        return all((digest, pixels_of(box)) in self._answers for box in self._boxes(item))

    def ask(self, batch: Sequence[tuple[Item, Picture]], threads: Executor) -> None:
        for item, picture in batch:
            if not self.has_answers(item, picture.digest):
                depth = self._depth.estimate(picture.image)
                means = {pixels_of(box): mean_depth(depth, box) for box in self._boxes(item)}
                self._answers.append(
                    [(picture.digest, key, None if math.isnan(mean) else mean) for key, mean in means.items()]
                )

    def refresh(self) -> None:
        self._answers.refresh()

    def of(self, item: Item) -> dict[str, float]:
        """{pixels of a box: mean depth} of an image that was looked at; NaN of an empty box."""
        digest = self.digest_of(item)
        keys = [pixels_of(box) for box in self._boxes(item)]
        found = {key: self._answers.answer(digest, key) for key in keys}
        return {key: math.nan if mean is None else mean for key, mean in found.items()}


def pixels_of(box: Box) -> str:
    """The box in whole pixels, by which depths are kept."""
    return " ".join(str(int(side)) for side in box.xyxy)
