"""CLIP score: cosine between a picture and its prompt, raw; convention `clip/b32-cos@1`.

Not times 100 or 2.5, not clamped at 0. Beside it stands the null: the same pictures with the prompts of
other pictures; scores of different CLIP models do not compare.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from pixart_core.artifacts.image_records import content_digest
from pixart_core.encoders.pretrained import loading, locate
from pixart_core.evaluation.extractors import CLIP_B32, Extractor, full_precision, load_model, short_of
from pixart_core.evaluation.feature_cache import FeatureCache
from pixart_core.evaluation.preparation import CLIP_MEAN, CLIP_STD, short_side_then_crop
from pixart_core.seeding import derive_seed

NULL_ROUNDS = 16  # prompts of others that each picture is compared with
GALLERY = 8  # worst and best prompts that the report shows
DIGITS = 4


@dataclasses.dataclass(frozen=True)
class ClipScorer:
    """Both towers of a CLIP model.

    Attributes:
        images: its image tower; embeddings have length 1.
        texts: prompts to embeddings of length 1.
    """

    images: Extractor
    model: Any
    tokenizer: Any
    device: torch.device

    def texts(self, prompts: Sequence[str], batch_size: int) -> Float[np.ndarray, "n d"]:
        """Embeddings of `prompts` (77 tokens at most, the rest is cut off as CLIP's own code may)."""
        rows = []
        for start in range(0, len(prompts), batch_size):
            tokens = self.tokenizer(
                list(prompts[start : start + batch_size]),
                padding="max_length",
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).to(self.device)
            with full_precision():
                output = self.model.get_text_features(**tokens)
            embeds = getattr(output, "pooler_output", output)
            rows.append((embeds / embeds.norm(dim=-1, keepdim=True)).float().cpu().numpy())
        return np.concatenate(rows)

    def cut_off(self, prompts: Sequence[str]) -> int:
        """How many of `prompts` are longer than the model reads."""
        most = self.model.config.text_config.max_position_embeddings
        return sum(len(ids) > most for ids in self.tokenizer(list(prompts))["input_ids"])


def load_clip(source: str, device: torch.device) -> ClipScorer:
    """CLIP from a hub id or folder.

    Raises:
        UserError: no such model, or one without tokenizer.
    """
    from transformers import AutoTokenizer, CLIPModel

    model, weights, name = load_model(CLIPModel, source, "clip", "clip", device)
    with loading(source, "tokenizer of CLIP"):
        tokenizer = AutoTokenizer.from_pretrained(**locate(source, "clip"))
    vision = model.config.vision_config
    shape = (vision.hidden_size, vision.num_hidden_layers, vision.patch_size, vision.image_size)
    standard = name == short_of(CLIP_B32) and shape == (768, 12, 32, 224)

    def forward(pixels: np.ndarray) -> Float[np.ndarray, "batch d"]:
        with full_precision():
            output = model.get_image_features(pixel_values=torch.from_numpy(pixels).to(device))
        embeds = getattr(output, "pooler_output", output)
        return (embeds / embeds.norm(dim=-1, keepdim=True)).float().cpu().numpy()

    images = Extractor(
        f"clip-{weights}@1",
        "clip/b32-cos@1" if standard else f"clip/{name}-cos@1",
        standard,
        weights,
        model.config.projection_dim,
        short_side_then_crop(vision.image_size, CLIP_MEAN, CLIP_STD),
        forward,
    )
    return ClipScorer(images, model, tokenizer, device)


def text_embeddings(
    scorer: ClipScorer, cache: FeatureCache, prompts: Sequence[str], batch_size: int
) -> dict[str, Float[np.ndarray, " d"]]:
    """Embedding of each different prompt; what is in `cache` is not computed again."""
    different = list(dict.fromkeys(prompts))
    digests = [content_digest(prompt.encode()) for prompt in different]
    for start in range(0, len(different), batch_size):
        batch = slice(start, start + batch_size)
        if not all(digest in cache for digest in digests[batch]):
            cache.append(digests[batch], scorer.texts(different[batch], batch_size))
    return dict(zip(different, cache.gather(digests), strict=True))


def clip_scores(
    images: Float[np.ndarray, "n d"],
    texts: Float[np.ndarray, "p d"],
    prompt_of: np.ndarray,
    *,
    bootstrap: int,
    seed: int,
) -> tuple[dict[str, Any], Float[np.ndarray, " n"]]:
    """Scores of pictures against their prompts and, as the null, against those of others.

    Args:
        images: embeddings of length 1.
        texts: of each different prompt.
        prompt_of: number of each picture's prompt.

    Returns:
        {score, ci95, null, score_minus_null, score_minus_null_ci95, n, prompts}, and every picture's score.
        Intervals are bootstrap percentiles; pictures of one prompt are drawn together. With one prompt there
        is no null: None.
    """
    cosine = np.einsum("nd,nd->n", images, texts[prompt_of])
    null = _null(images, texts, prompt_of, derive_seed(seed, "clip null"))
    values = np.stack([cosine, cosine if null is None else cosine - null])
    means, intervals = _intervals(values, prompt_of, bootstrap, derive_seed(seed, "clip bootstrap"))
    scores = {
        "score": means[0],
        "ci95": intervals[0],
        "null": None if null is None else round(float(null.mean()), DIGITS),
        "score_minus_null": None if null is None else means[1],
        "score_minus_null_ci95": None if null is None else intervals[1],
        "n": len(cosine),
        "prompts": len(texts),
    }
    return scores, cosine


def _null(images: Any, texts: Any, prompt_of: np.ndarray, seed: int) -> np.ndarray | None:
    """Mean cosine of each picture with up to `NULL_ROUNDS` prompts of others, never its own."""
    count = len(texts)
    if count < 2:
        return None
    order = np.random.default_rng(seed).permutation(count)
    rank = np.argsort(order)
    rounds = range(1, min(NULL_ROUNDS, count - 1) + 1)
    shuffled = [texts[order[(rank[prompt_of] + shift) % count]] for shift in rounds]
    return np.mean([np.einsum("nd,nd->n", images, others) for others in shuffled], axis=0)


def _intervals(
    values: Float[np.ndarray, "kinds n"], groups: np.ndarray, bootstrap: int, seed: int
) -> tuple[list[float], list[list[float]]]:
    """Means and 95 % intervals, groups of samples resampled together."""
    size = int(groups.max()) + 1
    sums = np.stack([np.bincount(groups, row, minlength=size) for row in values])
    counts = np.bincount(groups, minlength=size).astype(np.float64)
    weights = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), bootstrap)
    resampled = (weights @ sums.T) / (weights @ counts)[:, None]
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    means = [round(float(row.mean()), DIGITS) for row in values]
    bounds = zip(low, high, strict=True)
    return means, [[round(float(a), DIGITS), round(float(b), DIGITS)] for a, b in bounds]
