"""What all scorers of a category work on: its images, each with its own prompt and another one."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from pixart_core.artifacts.image_records import content_digest
from pixart_core.artifacts.samples import SampleRecord
from pixart_core.evaluation.compbench.language import Reader, Sentence
from pixart_core.evaluation.compbench.layout import SAMPLES, PromptImages
from pixart_core.evaluation.compbench.prompts import Prompt, prompt_key
from pixart_core.evaluation.compbench.summary import Scored, others
from pixart_core.evaluation.sample_set import SampleSet
from pixart_core.launch import Processes


@dataclasses.dataclass(frozen=True)
class Item:
    """One image of a category.

    Attributes:
        index: its number in `Work.items`.
        official_index: its number in the category's official folder, whose images are all of the set's.
        other: the prompt of the null; None where there is only one prompt.
    """

    index: int
    official_index: int
    sample: SampleRecord
    prompt: Prompt
    other: Prompt | None

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Its own prompt, and the other one."""
        return (self.prompt,) if self.other is None else (self.prompt, self.other)

    @property
    def names(self) -> list[str]:
        """What files of the official code may call the image."""
        official = f"{prompt_key(self.prompt.text)}_{self.official_index:06d}.png"
        folder = f"{self.prompt.category}/{SAMPLES}"
        return [self.sample.file, Path(self.sample.file).name, f"{folder}/{official}", official]


@dataclasses.dataclass(frozen=True)
class Work:
    """The images of a category.

    Attributes:
        prompts: all prompts of the category, with or without images.
    """

    samples: SampleSet
    category: str
    images: tuple[PromptImages, ...]
    prompts: tuple[Prompt, ...]
    items: tuple[Item, ...]

    @classmethod
    def of(
        cls,
        samples: SampleSet,
        images: Sequence[PromptImages],
        prompts: Sequence[Prompt],
        seed: int,
        official: Mapping[str, int],
    ) -> "Work":
        """Pair every image with the prompt of the null.

        Args:
            official: number of each file in the category's official folder.
        """
        drawn = [entry.prompt for entry in images]
        null: Sequence[Prompt | None] = others(drawn, seed) or [None] * len(drawn)
        pairs = [
            (sample, entry.prompt, other)
            for entry, other in zip(images, null, strict=True)
            for sample in entry.samples
        ]
        items = tuple(
            Item(index, official[sample.file], sample, prompt, other)
            for index, (sample, prompt, other) in enumerate(pairs)
        )
        return cls(samples, prompts[0].category, tuple(images), tuple(prompts), items)

    def batches(self, size: int) -> Iterator[list[tuple[Item, str, bytes]]]:
        """(item, digest, encoded image), always in the same batches: the last bit of an answer may depend
        on what is computed beside it."""
        for start in range(0, len(self.items), size):
            encoded = [(item, self.samples.read(item.sample)) for item in self.items[start : start + size]]
            yield [(item, content_digest(data), data) for item, data in encoded]

    def shared(self, processes: Processes, size: int) -> "Work":
        """Every count-th batch of `size` images: what one of several processes prepares the caches with."""
        starts = processes.share(range(0, len(self.items), size))
        items = [item for start in starts for item in self.items[start : start + size]]
        return dataclasses.replace(self, items=tuple(items))

    def decode(self, item: Item, data: bytes) -> Image.Image:
        """The picture of an item, as RGB."""
        return self.samples.decode(item.sample, data)

    def read_all(self, reader: Reader) -> dict[Prompt, Sentence]:
        """Every prompt of an image, read."""
        # In order: batches of what is read must not depend on how Python hashes.
        needed = dict.fromkeys(prompt for item in self.items for prompt in item.prompts)
        return {prompt: reader.read(prompt.text) for prompt in needed}

    def grouped(self, scored: Sequence[Scored]) -> list[list[Scored]]:
        """By prompt, in the order of `images`.

        Args:
            scored: one for each item.
        """
        waiting = iter(scored)
        return [[next(waiting) for _ in entry.samples] for entry in self.images]


Score = Callable[[Item, Prompt], tuple[float, tuple[str, ...]]]
"""Of an image against a prompt: score and reasons."""


def score_items(work: Work, score: Score) -> list[Scored]:
    """Score every image against its own prompt and against the other one."""
    scored = []
    for item in work.items:
        own, reasons = score(item, item.prompt)
        null = None if item.other is None else score(item, item.other)[0]
        scored.append(Scored(own, null, reasons))
    return scored
