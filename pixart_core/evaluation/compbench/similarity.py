"""CLIPScore (non_spatial, and a third of complex): raw cosine of image and prompt."""

import dataclasses
from pathlib import Path

from pixart_core.evaluation.clip_score import ClipScorer, text_embeddings
from pixart_core.evaluation.compbench.language import Reader
from pixart_core.evaluation.compbench.prompts import Prompt
from pixart_core.evaluation.compbench.summary import Protocol
from pixart_core.evaluation.compbench.work import Item, Score, Work
from pixart_core.evaluation.feature_cache import FeatureCache
from pixart_core.evaluation.pictures import look, sampled_pictures
from pixart_core.progress import Progress


def similarity_protocol(clip: ClipScorer) -> Protocol:
    """The id of what this CLIP measures."""
    name = clip.images.protocol.removesuffix("@1").replace("/", "-")
    return Protocol(f"compbench/{name}@1", clip.images.standard)


def similarity_scores(
    work: Work, clip: ClipScorer, reader: Reader | None, cache: Path, batch_size: int, progress: Progress
) -> Score:
    """Embed the images and prompts that are not in the cache yet; then score from the embeddings.

    Args:
        reader: drops adjectives from the prompts (complex); None leaves prompts as they are.

    Raises:
        UserError: an image is gone or damaged.
        PixartError: the disk is full; what is cached is kept.
    """
    texts = {prompt: prompt.text for item in work.items for prompt in item.prompts}
    if reader is not None:
        texts = {prompt: sentence.without_adjectives for prompt, sentence in work.read_all(reader).items()}
    subset = dataclasses.replace(
        work.samples, name=f"CLIP {work.category}", samples=tuple(item.sample for item in work.items)
    )
    images = FeatureCache(cache, clip.images.id, clip.images.dimensions)
    digests = look(sampled_pictures(subset), [(clip.images, images)], batch_size, progress)
    captions = FeatureCache(cache, f"{clip.images.id}-texts", clip.images.dimensions)
    embedded = text_embeddings(clip, captions, list(texts.values()), batch_size)
    rows = dict(zip((item.index for item in work.items), images.gather(digests), strict=True))

    def score(item: Item, prompt: Prompt) -> tuple[float, tuple[str, ...]]:
        cosine = float(rows[item.index] @ embedded[texts[prompt]])
        return cosine, (f"cosine with {texts[prompt]!r}: {cosine:.3f}",)

    return score
