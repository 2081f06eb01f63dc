"""Reading what `evaluate` looks at: sample sets and the logs of training runs."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.checkpoint import LOG, read_checkpoint_card
from pixart_core.artifacts.samples import SAMPLES, SampleRecord, read_samples
from pixart_core.data.images import UnusableImageError, decode_image
from pixart_core.data.shapes import Scene, scene_from_meta
from pixart_core.errors import UserError


@dataclasses.dataclass(frozen=True)
class SampleSet:
    """The samples of one `pixart sample`, under the name that the report gives them.

    Attributes:
        whole: samples of the set, where these are not all of them; else None.
    """

    name: str
    folder: Path
    card: Card
    samples: tuple[SampleRecord, ...]
    whole: int | None = None

    def picture(self, sample: SampleRecord) -> Image.Image:
        """The picture of `sample` as RGB.

        Raises:
            UserError: the file is gone or damaged.
        """
        return self.decode(sample, self.read(sample))

    def read(self, sample: SampleRecord) -> bytes:
        """The file of `sample`.

        Raises:
            UserError: it is gone.
        """
        path = self.folder / sample.file
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); sample again") from error

    def decode(self, sample: SampleRecord, data: bytes) -> Image.Image:
        """The picture in `data`, as RGB.

        Raises:
            UserError: damaged.
        """
        try:
            return decode_image(data)
        except UnusableImageError as error:
            raise UserError(f"{self.folder / sample.file}: {error}; sample again") from error

    def pictures(self) -> Iterator[Image.Image]:
        """All pictures, in order."""
        return (self.picture(sample) for sample in self.samples)

    @property
    def prompts(self) -> list[str]:
        """The prompt of each sample, in order."""
        return [sample.prompt for sample in self.samples]

    def first(self, limit: int | None) -> "SampleSet":
        """The first `limit` samples; `whole` still tells how many there are."""
        if limit is None or limit >= len(self.samples):
            return self
        return dataclasses.replace(self, samples=self.samples[:limit], whole=len(self.samples))

    def of(self, whole: int | None) -> "SampleSet":
        """The same as a part of `whole` samples, if those are more than it knows of."""
        known = self.whole or len(self.samples)
        return self if whole is None or whole <= known else dataclasses.replace(self, whole=whole)

    @property
    def partial(self) -> bool:
        """Whether samples were left out (`first`, `of`)."""
        return self.whole is not None


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A finished training: its card and the rows of its log."""

    name: str
    card: Card
    rows: tuple[Mapping[str, float], ...]


def read_sample_set(name: str, folder: Path) -> SampleSet:
    """Read the sample set in `folder`.

    Raises:
        UserError: not a finished sample set, an empty one, or a damaged line (named).
    """
    card = Card.read(folder, "samples")
    try:
        samples = read_samples(folder)
    except TypeError as error:
        raise UserError(f"{folder / SAMPLES}: a row is no sample ({error}); sample again") from error
    if not samples:
        raise UserError(f"{folder} holds no samples")
    return SampleSet(name, folder, card, tuple(samples))


def read_training_run(name: str, folder: Path) -> TrainingRun:
    """Read the log of the training in `folder`.

    Raises:
        UserError: not a finished training, or a checkpoint that was converted, not trained.
    """
    card = read_checkpoint_card(folder)
    if card.options.get("command") != "train":
        raise UserError(
            f"runs {name}: {folder} was made by `pixart {card.options.get('command')}`, not trained"
        )
    rows = tuple(row for _, row in _rows(folder / LOG)) if (folder / LOG).exists() else ()
    return TrainingRun(name, card, rows)


def true_scenes(samples: SampleSet) -> list[Scene]:
    """What each sample should show.

    Raises:
        UserError: the prompts came without the ground truth of generated shapes.
    """
    scenes = []
    for number, sample in enumerate(samples.samples, 1):
        try:
            scenes.append(scene_from_meta(sample.meta, sample.height, sample.width))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"samples {samples.name}: sample {number} ({sample.prompt!r}) has no ground truth, so bench "
                "shapes cannot score it; sample with prompts_file set to a `pixart shapes` manifest"
            ) from error
    return scenes


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
            rows.append((number, row))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return rows
