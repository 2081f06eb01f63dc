"""What all scorers of a category work on: its images, each with its own prompt and another one."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

from pixart_core.artifacts.samples import SampleRecord
from pixart_core.evaluation.compbench.language import Reader, Sentence
from pixart_core.evaluation.compbench.layout import SAMPLES, PromptImages
from pixart_core.evaluation.compbench.prompts import Prompt, prompt_key
from pixart_core.evaluation.compbench.summary import Scored, others
from pixart_core.evaluation.pictures import Picture
from pixart_core.evaluation.sample_set import SampleSet


@dataclasses.dataclass(frozen=True)
class Item:
    """One image of a category.

    Attributes:
        number: of the image in its sample set.
        official_index: its number in the category's official folder, whose images are all of the set's.
        other: the prompt of the null; None where there is only one prompt.
    """

    number: int
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
        number = {sample.file: place for place, sample in enumerate(samples.samples)}
        items = tuple(
            Item(number[sample.file], official[sample.file], sample, prompt, other)
            for sample, prompt, other in pairs
        )
        return cls(samples, prompts[0].category, tuple(images), tuple(prompts), items)

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


class Asker(abc.ABC):
    """Onlooker that asks a model about the images of a category, and keeps the answers."""

    def __init__(self, work: Work) -> None:
        self._items: dict[int, list[Item]] = {}
        for item in work.items:
            self._items.setdefault(item.number, []).append(item)
        self._digests: dict[int, str] = {}

    def wants(self, number: int) -> bool:
        return number in self._items

    def knows(self, number: int, digest: str) -> bool:
        self._digests[number] = digest
        return all(self.has_answers(item, digest) for item in self._items[number])

    def see(self, pictures: Sequence[Picture], threads: Executor) -> None:
        # All that came together, also what is known: the last bit of an answer may depend on what is
        # computed beside it.
        self.ask([(item, picture) for picture in pictures for item in self._items[picture.number]], threads)

    def digest_of(self, item: Item) -> str:
        """Of the item's file, which was looked at."""
        return self._digests[item.number]

    @abc.abstractmethod
    def has_answers(self, item: Item, digest: str) -> bool:
        """Whether all that will be asked of an image is in the cache."""

    @abc.abstractmethod
    def ask(self, batch: Sequence[tuple[Item, Picture]], threads: Executor) -> None:
        """Ask, and append to the cache.

        Raises:
            PixartError: the disk is full; what is cached is kept.
        """

    @abc.abstractmethod
    def refresh(self) -> None:
        """Learn the answers that other processes have got."""


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
