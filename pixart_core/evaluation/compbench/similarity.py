"""CLIPScore (non_spatial, and a third of complex): raw cosine of image and prompt."""

import functools
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from jaxtyping import Float

from pixart_core.evaluation.caches import Caches
from pixart_core.evaluation.clip_score import ClipScorer, text_embeddings
from pixart_core.evaluation.compbench.language import Reader
from pixart_core.evaluation.compbench.prompts import Prompt
from pixart_core.evaluation.compbench.summary import Protocol
from pixart_core.evaluation.compbench.work import Asker, Item, Work
from pixart_core.evaluation.pictures import Features, Picture


def similarity_protocol(clip: ClipScorer) -> Protocol:
    """The id of what this CLIP measures."""
    name = clip.images.protocol.removesuffix("@1").replace("/", "-")
    return Protocol(f"compbench/{name}@1", clip.images.standard)


class SimilarityAsker(Asker):
    """Embeds the images; the prompts, when the first score is asked for."""

    def __init__(
        self, work: Work, clip: ClipScorer, reader: Reader | None, batch_size: int, caches: Caches
    ) -> None:
        """
        Args:
            reader: drops adjectives from the prompts (complex); None leaves prompts as they are.
        """
        super().__init__(work)
        self._clip, self._batch_size = clip, batch_size
        self._texts = {prompt: prompt.text for item in work.items for prompt in item.prompts}
        if reader is not None:
            read = work.read_all(reader)
            self._texts = {prompt: sentence.without_adjectives for prompt, sentence in read.items()}
        images = caches.features(clip.images.id, clip.images.dimensions)
        self._features = Features(clip.images, images)
        self._captions = caches.features(f"{clip.images.id}-texts", clip.images.dimensions)

    def has_answers(self, item: Item, digest: str) -> bool:
        return digest in self._features.cache

    def ask(self, batch: Sequence[tuple[Item, Picture]], threads: Executor) -> None:
        self._features.see([picture for _, picture in batch], threads)

    def refresh(self) -> None:
        self._features.refresh()

    def score(self, item: Item, prompt: Prompt) -> tuple[float, tuple[str, ...]]:
        """See `work.Score`."""
        text = self._texts[prompt]
        (row,) = self._features.cache.gather([self.digest_of(item)])
        cosine = float(row @ self._embedded[text])
        return cosine, (f"cosine with {text!r}: {cosine:.3f}",)

    @functools.cached_property
    def _embedded(self) -> dict[str, Float[np.ndarray, " d"]]:
        return text_embeddings(self._clip, self._captions, list(self._texts.values()), self._batch_size)
