"""Gates: what keeps a usable image out of a manifest. Each sees what those before it let by."""

import array
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from pixart_core.data.inspection import Fact
from pixart_core.data.perceptual import NearIndex, unpack_looks
from pixart_core.data.scan_log import Inspected
from pixart_core.data.seen_before import SeenBefore
from pixart_core.recipe.data import Filters

Verdict = int | None
"""None lets an image by; a number keeps it out and is what `detail` needs to say why."""

Bounds = tuple[int, int | None]


class Gate(Protocol):
    """One reason to leave images out.

    Attributes:
        option: what the user set.
        reason: for the ledger and the counts.
        needs: what must be computed from each image.
        names_image: whether a verdict is the number of the image that was kept instead.
    """

    option: str
    reason: str
    needs: frozenset[Fact]
    names_image: bool

    def judge(self, images: Sequence[Inspected], numbers: Sequence[int]) -> list[Verdict]:
        """A verdict on each image; `numbers` count all images of the scan, in order."""

    def detail(self, image: Inspected, verdict: int) -> str:
        """What the ledger says beside the reason."""

    def settle(self, end: int) -> None:
        """Of the images just judged, those before number `end` are decided upon; the others never came."""


class _Gate:
    """A gate that looks at one image at a time."""

    needs: frozenset[Fact] = frozenset()
    names_image = False

    def __init__(self, option: str, reason: str) -> None:
        self.option = option
        self.reason = reason

    def settle(self, end: int) -> None: ...


class SizeGate(_Gate):
    """Images with a short shorter side."""

    def __init__(self, least: int) -> None:
        super().__init__("min_size", f"shorter side below {least} pixels")
        self._least = least

    def judge(self, images: Sequence[Inspected], numbers: Sequence[int]) -> list[Verdict]:
        return [0 if min(image.width, image.height) < self._least else None for image in images]

    def detail(self, image: Inspected, verdict: int) -> str:
        return f"{image.width}x{image.height}"


class AspectGate(_Gate):
    """Images that are very long or very tall."""

    def __init__(self, bounds: tuple[float, float]) -> None:
        super().__init__("aspect", f"width/height outside {bounds[0]:g} to {bounds[1]:g}")
        self._bounds = bounds

    def judge(self, images: Sequence[Inspected], numbers: Sequence[int]) -> list[Verdict]:
        low, high = self._bounds
        ratios = [image.width / image.height for image in images]
        # 0.1 is no exact number: 3 by 30 pixels must pass.
        return [None if low * (1 - 1e-9) <= ratio <= high * (1 + 1e-9) else 0 for ratio in ratios]

    def detail(self, image: Inspected, verdict: int) -> str:
        return f"{image.width}x{image.height}"


class LengthGate(_Gate):
    """Captions that are too short or too long; no caption has length 0."""

    def __init__(self, option: str, unit: str, bounds: Bounds, length: Callable[[str], int]) -> None:
        low, high = bounds
        span = f"at least {low}" if high is None else f"{low} to {high}"
        super().__init__(option, f"caption not of {span} {unit}")
        self._bounds = bounds
        self._length = length
        self._unit = unit

    def judge(self, images: Sequence[Inspected], numbers: Sequence[int]) -> list[Verdict]:
        low, high = self._bounds
        lengths = [self._length(image.caption or "") for image in images]
        return [None if low <= length and (high is None or length <= high) else length for length in lengths]

    def detail(self, image: Inspected, verdict: int) -> str:
        return f"{verdict} {self._unit}"


class TokenGate(_Gate):
    """Captions that the text encoder would cut; without `drop` they pass and are flagged.

    Attributes:
        captions: how many were counted.
        long: number of each image whose caption is too long, and in `tokens` its length.
    """

    def __init__(self, lengths: Callable[[Sequence[str]], Sequence[int]], most: int, *, drop: bool) -> None:
        """Args: lengths: the tokens of each text, uncut."""
        super().__init__("truncated", f"caption longer than {most} tokens")
        self._lengths = lengths
        self._most = most
        self._drop = drop
        self._judged: list[tuple[int, int]] = []
        self.captions = 0
        self.long = array.array("q")
        self.tokens = array.array("q")

    def judge(self, images: Sequence[Inspected], numbers: Sequence[int]) -> list[Verdict]:
        with_caption = [place for place, image in enumerate(images) if image.caption]
        lengths = self._lengths([images[place].caption or "" for place in with_caption])
        verdicts: list[Verdict] = [None] * len(images)
        self._judged = []
        for place, length in zip(with_caption, lengths, strict=True):
            self._judged.append((numbers[place], length))
            if self._drop and length > self._most:
                verdicts[place] = length
        return verdicts

    def detail(self, image: Inspected, verdict: int) -> str:
        return f"{verdict} tokens"

    def settle(self, end: int) -> None:
        for number, length in self._judged:
            if number < end:
                self.captions += 1
                if length > self._most:
                    self.long.append(number)
                    self.tokens.append(length)
        self._judged = []


class ExactGate(_Gate):
    """Images whose file or pixels came before."""

    names_image = True

    def __init__(self, of: str) -> None:
        """Args: of: "bytes" or "pixels"."""
        super().__init__(
            "exact_duplicates", "same file as another" if of == "bytes" else "same pixels as another"
        )
        self.needs = frozenset(("bytes",)) if of == "bytes" else frozenset(("pixels",))
        self._of = of
        self._seen = SeenBefore()

    def judge(self, images: Sequence[Inspected], numbers: Sequence[int]) -> list[Verdict]:
        hashes = [image.bytes_hash if self._of == "bytes" else image.pixels_hash for image in images]
        # 64 bits: among ten million images two that differ share them once in 370,000 such data sets.
        keys = np.array([int(str(text)[:16], 16) for text in hashes], np.uint64)
        first = self._seen.first(keys, np.array(numbers, np.int64))
        return [None if found < 0 else int(found) for found in first]

    def detail(self, image: Inspected, verdict: int) -> str:
        raise AssertionError("the detail is the other image's name")


class NearGate(_Gate):
    """Images that look like one that was kept."""

    names_image = True
    needs: frozenset[Fact] = frozenset(("look",))

    def __init__(self, distance: int) -> None:
        super().__init__("near_duplicates", f"looks like another (within {distance} of 64 bits)")
        self._index = NearIndex(distance)

    def judge(self, images: Sequence[Inspected], numbers: Sequence[int]) -> list[Verdict]:
        verdicts: list[Verdict] = [None] * len(images)
        places = [place for place, image in enumerate(images) if image.look]
        if not places:
            return verdicts
        looks = unpack_looks([bytes.fromhex(images[place].look or "") for place in places])
        first = self._index.first_kept(looks, np.array([numbers[place] for place in places], np.int64))
        for place, found in zip(places, first, strict=True):
            if found >= 0:
                verdicts[place] = int(found)
        return verdicts

    def detail(self, image: Inspected, verdict: int) -> str:
        raise AssertionError("the detail is the other image's name")


def size_gates(filters: Filters) -> list[Gate]:
    """The gates on an image's size and its caption's length."""
    gates: list[Gate] = []
    if filters.min_size is not None:
        gates.append(SizeGate(filters.min_size))
    if filters.aspect is not None:
        gates.append(AspectGate(filters.aspect))
    if filters.caption_words is not None:
        bounds = filters.caption_words
        gates.append(LengthGate("caption_words", "words", bounds, lambda text: len(text.split())))
    if filters.caption_characters is not None:
        gates.append(LengthGate("caption_characters", "characters", filters.caption_characters, len))
    return gates


def duplicate_gates(filters: Filters) -> list[Gate]:
    """The gates that compare images with those before; they come last, so that a kept one counts."""
    gates: list[Gate] = []
    if filters.exact_duplicates is not None:
        gates.append(ExactGate(filters.exact_duplicates))
    if filters.near_duplicates is not None:
        gates.append(NearGate(filters.near_duplicates))
    return gates
