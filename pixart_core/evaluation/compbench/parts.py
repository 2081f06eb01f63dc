"""Loading what the scorers need, each part once and only when a category asks for it."""

import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NoReturn, TypeVar

import torch

from pixart_core.errors import UserError
from pixart_core.evaluation.clip_score import ClipScorer, load_clip
from pixart_core.evaluation.compbench import blip_weights, missing
from pixart_core.evaluation.compbench.blip import BlipVqa
from pixart_core.evaluation.compbench.blip_weights import load_blip
from pixart_core.evaluation.compbench.depth import DepthModel, load_depth
from pixart_core.evaluation.compbench.detections import Detections, read_detections
from pixart_core.evaluation.compbench.detectors import DEFAULTS, Detector, load_detector
from pixart_core.evaluation.compbench.language import Reader, load_reader
from pixart_core.evaluation.compbench.missing import Missing
from pixart_core.evaluation.published_weights import cached_file
from pixart_core.recipe.compbench import CompBenchOptions

T = TypeVar("T")
_OPTIONS = {"clip": "clip", "boxes": "detector_model", "depth": "depth"}


class PartIsMissingError(Exception):
    """A part is not here; which, is in `Parts.missing`."""


class Parts:
    """The models and files of one evaluation.

    Attributes:
        missing: what was asked for and is not here, by part.
        unnamed: those of `missing` that no option names.
        batch_size: images, or questions, at a time.
    """

    def __init__(
        self,
        options: CompBenchOptions,
        categories: Collection[str],
        device: torch.device,
        batch_size: int,
        clip: ClipScorer | None = None,
    ) -> None:
        """Args: clip: the CLIP that `options` names, where another bench has loaded it."""
        self.missing: dict[str, Missing] = {}
        self.unnamed: set[str] = set()
        self.batch_size = batch_size
        self._options = options
        self._categories = categories
        self._device = device
        if clip is not None:
            self.clip = clip  # instead of the one that would be loaded

    @functools.cached_property
    def reader(self) -> Reader:
        """Raises PartIsMissingError: nothing is installed that reads prompts."""
        options = self._options
        return self._load(
            "reader",
            lambda: load_reader(options.chunker, options.spacy_model),
            lambda error: missing.reader_is_missing(self._categories, error),
        )

    @functools.cached_property
    def blip(self) -> BlipVqa:
        """Raises PartIsMissingError: no weights, or none of that id can be had."""
        options = self._options
        cached = cached_file(blip_weights.PUBLISHED)
        source = options.blip or (None if cached is None else str(cached))
        if source is None:
            self.unnamed.add("blip")
            self._miss("blip", missing.blip_is_not_named(self._categories))

        def load() -> BlipVqa:
            assert source is not None
            model, tokenizer = load_blip(source, options.blip_tokenizer)
            return BlipVqa(model, tokenizer, self._device, self.batch_size)

        return self._load(
            "blip",
            load,
            lambda error: missing.model_is_missing(
                "BLIP-VQA", source, missing.NEEDS_BLIP, self._categories, "blip", error
            ),
            # The official file needs a tokenizer of the hub beside it.
            is_local=Path(source).is_dir() or Path(options.blip_tokenizer).is_dir(),
        )

    @functools.cached_property
    def clip(self) -> ClipScorer:
        """Raises PartIsMissingError: it cannot be had."""
        source = self._options.clip
        return self._model(
            "clip", "CLIP", source, missing.NEEDS_CLIP, lambda: load_clip(source, self._device)
        )

    @functools.cached_property
    def boxes(self) -> Detections | Detector:
        """Raises PartIsMissingError: no dump was named, or the detector cannot be had.

        UserError: the dump is damaged.
        """
        options = self._options
        kind = options.detector
        if kind == "unidet-json":
            if options.detections is None:
                self.unnamed.add("boxes")
                self._miss("boxes", missing.detections_are_not_named(self._categories))
            return read_detections(Path(options.detections).expanduser())

        def load() -> Detector:
            assert kind != "unidet-json"
            return load_detector(kind, options.detector_model, options.detector_threshold, self._device)

        source = options.detector_model or DEFAULTS[kind]
        return self._model("boxes", "detector", source, missing.NEEDS_BOXES, load)

    @functools.cached_property
    def depth(self) -> DepthModel | Path:
        """Raises PartIsMissingError: the model cannot be had."""
        source = self._options.depth
        folder = Path(source).expanduser()
        if folder.is_dir() and not (folder / "config.json").is_file():
            return folder
        return self._model(
            "depth", "depth model", source, missing.NEEDS_DEPTH, lambda: load_depth(source, self._device)
        )

    def _model(self, key: str, part: str, source: str, needed: tuple[str, ...], load: Callable[[], T]) -> T:
        return self._load(
            key,
            load,
            lambda error: missing.model_is_missing(
                part, source, needed, self._categories, _OPTIONS[key], error
            ),
            is_local=Path(source).expanduser().exists(),
        )

    def _load(
        self,
        key: str,
        load: Callable[[], T],
        describe: Callable[[UserError], Missing],
        is_local: bool = False,
    ) -> T:
        if key in self.missing:
            raise PartIsMissingError(key)
        try:
            return load()
        except UserError as error:
            if is_local:  # it is there, and damaged or something else: a mistake to be told of
                raise
            self._miss(key, describe(error))

    def _miss(self, key: str, part: Missing) -> NoReturn:
        self.missing.setdefault(key, part)
        raise PartIsMissingError(key)
