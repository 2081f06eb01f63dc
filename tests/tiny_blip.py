"""A tiny BLIP-VQA with the official file's names, and its arithmetic written out in float64."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BertTokenizer

WIDTH, HEADS, LAYERS, PATCH, SIDE, WORDS = 128, 2, 2, 8, 3, 30524
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", "a", "the", "red", "green", "blue", "wooden",
              "chair", "door", "boat", "bear", "table", "bowl", "##s", ",", "cat", "dog"]  # fmt: skip
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def save_tokenizer(folder: Path) -> Path:
    words = VOCABULARY + [f"[unused{number}]" for number in range(30522 - len(VOCABULARY))]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    return folder


def official_weights(seed: int = 0) -> dict[str, Tensor]:
    """Random weights named as those of `model_base_vqa_capfilt_large.pth`."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.3, shift: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale + shift

    weights: dict[str, Tensor] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        weights[f"{name}.weight"] = draw(outputs, inputs, scale=1.5 / math.sqrt(inputs))
        weights[f"{name}.bias"] = draw(outputs)

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = draw(WIDTH, shift=1.0)
        weights[f"{name}.bias"] = draw(WIDTH)

    weights["visual_encoder.cls_token"] = draw(1, 1, WIDTH)
    weights["visual_encoder.pos_embed"] = draw(1, SIDE * SIDE + 1, WIDTH)
    weights["visual_encoder.patch_embed.proj.weight"] = draw(WIDTH, 3, PATCH, PATCH, scale=0.1)
    weights["visual_encoder.patch_embed.proj.bias"] = draw(WIDTH)
    for layer in range(LAYERS):
        block = f"visual_encoder.blocks.{layer}"
        norm(f"{block}.norm1")
        norm(f"{block}.norm2")
        linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        linear(f"{block}.attn.proj", WIDTH, WIDTH)
        linear(f"{block}.mlp.fc1", 2 * WIDTH, WIDTH)
        linear(f"{block}.mlp.fc2", WIDTH, 2 * WIDTH)
    norm("visual_encoder.norm")
    for bert in ("text_encoder", "text_decoder.bert"):
        weights[f"{bert}.embeddings.position_ids"] = torch.arange(64)[None]
        weights[f"{bert}.embeddings.word_embeddings.weight"] = draw(WORDS, WIDTH)
        weights[f"{bert}.embeddings.position_embeddings.weight"] = draw(64, WIDTH)
        norm(f"{bert}.embeddings.LayerNorm")
        for layer in range(LAYERS):
            block = f"{bert}.encoder.layer.{layer}"
            for attention in ("attention", "crossattention"):
                for part in ("query", "key", "value"):
                    linear(f"{block}.{attention}.self.{part}", WIDTH, WIDTH)
                linear(f"{block}.{attention}.output.dense", WIDTH, WIDTH)
                norm(f"{block}.{attention}.output.LayerNorm")
            linear(f"{block}.intermediate.dense", 2 * WIDTH, WIDTH)
            linear(f"{block}.output.dense", WIDTH, 2 * WIDTH)
            norm(f"{block}.output.LayerNorm")
    head = "text_decoder.cls.predictions"
    linear(f"{head}.transform.dense", WIDTH, WIDTH)
    norm(f"{head}.transform.LayerNorm")
    weights[f"{head}.decoder.weight"] = weights["text_decoder.bert.embeddings.word_embeddings.weight"]
    weights[f"{head}.bias"] = weights[f"{head}.decoder.bias"] = draw(WORDS)
    return weights


def save_official(path: Path, weights: Mapping[str, Tensor] | None = None) -> Path:
    torch.save({"model": dict(weights or official_weights())}, path)
    return path


def answer(weights: Mapping[str, Tensor], image: Image.Image, tokens: Sequence[int]) -> float:
    """P(yes) / (P(yes) + P(no)) of one question of one image, in float64, from the official names.

    Vision transformer with LayerNorm before, BERT with LayerNorm after; the question looks at the image,
    the answer's first token at the question.
    """
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}
    side = SIDE * PATCH
    pixels = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)) / 255.0
    pixels = (pixels - MEAN) / STD
    cells = pixels.reshape(SIDE, PATCH, SIDE, PATCH, 3).transpose(0, 2, 4, 1, 3).reshape(SIDE * SIDE, -1)
    kernel = w["visual_encoder.patch_embed.proj.weight"].reshape(WIDTH, -1)
    x = cells @ kernel.T + w["visual_encoder.patch_embed.proj.bias"]
    x = np.concatenate([w["visual_encoder.cls_token"][0], x]) + w["visual_encoder.pos_embed"][0]
    for layer in range(LAYERS):
        block = f"visual_encoder.blocks.{layer}"
        q, k, v = np.split(_linear(w, f"{block}.attn.qkv", _norm(w, f"{block}.norm1", x, 1e-6)), 3, axis=1)
        x = x + _linear(w, f"{block}.attn.proj", _attend(q, k, v))
        hidden = _gelu(_linear(w, f"{block}.mlp.fc1", _norm(w, f"{block}.norm2", x, 1e-6)))
        x = x + _linear(w, f"{block}.mlp.fc2", hidden)
    x = _norm(w, "visual_encoder.norm", x, 1e-6)
    question = _bert(w, "text_encoder", [30523, *tokens[1:]], x)
    start = _bert(w, "text_decoder.bert", [30522], question)
    head = "text_decoder.cls.predictions"
    start = _norm(
        w, f"{head}.transform.LayerNorm", _gelu(_linear(w, f"{head}.transform.dense", start)), 1e-12
    )
    logits = (start @ w[f"{head}.decoder.weight"].T + w[f"{head}.bias"])[0]
    yes, no = np.exp(logits[[2748, 2053]] - logits.max())
    return float(yes / (yes + no))


def _bert(w: Mapping[str, np.ndarray], name: str, tokens: Sequence[int], context: np.ndarray) -> np.ndarray:
    x = w[f"{name}.embeddings.word_embeddings.weight"][list(tokens)]
    x = x + w[f"{name}.embeddings.position_embeddings.weight"][: len(tokens)]
    x = _norm(w, f"{name}.embeddings.LayerNorm", x, 1e-12)
    for layer in range(LAYERS):
        block = f"{name}.encoder.layer.{layer}"
        for attention, seen in (("attention", None), ("crossattention", context)):
            part = f"{block}.{attention}.self"
            states = x if seen is None else seen
            q = _linear(w, f"{part}.query", x)
            k, v = (_linear(w, f"{part}.{other}", states) for other in ("key", "value"))
            mixed = _linear(w, f"{block}.{attention}.output.dense", _attend(q, k, v))
            x = _norm(w, f"{block}.{attention}.output.LayerNorm", x + mixed, 1e-12)
        hidden = _linear(w, f"{block}.output.dense", _gelu(_linear(w, f"{block}.intermediate.dense", x)))
        x = _norm(w, f"{block}.output.LayerNorm", x + hidden, 1e-12)
    return x


def _linear(w: Mapping[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(w: Mapping[str, np.ndarray], name: str, x: np.ndarray, epsilon: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), HEADS, -1).transpose(1, 0, 2)

    scores = heads(q) @ heads(k).transpose(0, 2, 1) / math.sqrt(q.shape[1] // HEADS)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = scores / scores.sum(-1, keepdims=True) @ heads(v)
    return mixed.transpose(1, 0, 2).reshape(len(q), -1)
