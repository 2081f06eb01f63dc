"""BLIP-VQA for T2I-CompBench: the official weights file, or a transformers folder, as one model.

The hub's conversions are of another image size (384), and their configurations of another vision LayerNorm
epsilon (1e-5) than BLIP was trained with (1e-6).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertTokenizer, BlipConfig, BlipForQuestionAnswering

from pixart_core.artifacts.publish import staged_folder
from pixart_core.conversion.weight_files import read_weight_file
from pixart_core.encoders.pretrained import loading, locate, refuse_missing
from pixart_core.errors import UserError
from pixart_core.evaluation.published_weights import PublishedFile, find_published

OFFICIAL_FILE = "model_base_vqa_capfilt_large.pth"
OFFICIAL_URL = (
    "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/model_base_vqa_capfilt_large.pth"
)
OFFICIAL_SIZE = "1.4 GB"
PUBLISHED = PublishedFile((OFFICIAL_FILE,), OFFICIAL_URL, "", OFFICIAL_SIZE)
_HEAD_WIDTH = 64  # of every BLIP, in both towers
_VISION_EPSILON = 1e-6  # of BLIP's vision transformer
_RENAMED = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision_model.encoder.layers.\1.self_attn.qkv."),
    (
        r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"vision_model.encoder.layers.\1.self_attn.projection.",
    ),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision_model.encoder.layers.\1.mlp."),
)
_POSITIONS = re.compile(r"\.position_ids$")


def load_blip(source: str, tokenizer: str) -> tuple[BlipForQuestionAnswering, BertTokenizer]:
    """BLIP-VQA in float32 and its tokenizer.

    Args:
        source: path or address of the official .pth, a transformers folder or a hub id.
        tokenizer: hub id or folder of bert-base-uncased; of a folder or id, its own is taken.

    Raises:
        UserError: not there, damaged, or not the weights of a BLIP-VQA.
    """
    path = official_file(source)
    if path is not None:
        return model_of_official(path), _load_tokenizer(tokenizer)
    place = locate(source, "blip")
    with loading(source, "BLIP-VQA"):
        config: Any = BlipConfig.from_pretrained(**place)
        loaded: Any = BlipForQuestionAnswering.from_pretrained(
            **place, config=_as_trained(config), dtype=torch.float32, output_loading_info=True
        )
    model, report = loaded
    refuse_missing(source, "BLIP-VQA", list(report["missing_keys"]))
    return model.eval(), _load_tokenizer(source)


def official_file(source: str) -> Path | None:
    """The official .pth at a path, in a folder or at an address; None for a transformers folder or a hub id.

    Raises:
        UserError: the download fails.
    """
    path = Path(source).expanduser()
    if path.exists() or source.startswith("https://"):
        return find_published(source, PUBLISHED, "compbench.blip")
    return None


def convert_blip_vqa(path: Path, output: Path, tokenizer: str) -> None:
    """Write the official weights of `path` as a transformers folder, tokenizer included.

    Raises:
        UserError: as `load_blip`.
        PixartError: `output` cannot be written; it is untouched then.
    """
    model, words = model_of_official(path), _load_tokenizer(tokenizer)
    with staged_folder(output) as staging:
        model.save_pretrained(staging)
        words.save_pretrained(staging)


def model_of_official(path: Path) -> BlipForQuestionAnswering:
    """The official weights in transformers' class; every tensor of the file is accounted for.

    Raises:
        UserError: damaged, or not exactly the weights of a BLIP-VQA.
    """
    weights = read_weight_file(path).weights("model")
    try:
        config = _config_of(weights)
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        raise UserError(f"{path} is no BLIP-VQA: it lacks {error}; expected {OFFICIAL_FILE}") from error
    renamed = _renamed(weights, path)
    model = BlipForQuestionAnswering(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _refuse_other_names(path, expected, renamed)
    model.load_state_dict(renamed, strict=True)
    return model.float().eval()


def _refuse_other_names(
    path: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor]
) -> None:
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or surplus:
        what = f"lacks {len(missing)} tensors, e.g. {missing[0]}" if missing else ""
        more = f"has {len(surplus)} that belong to no BLIP-VQA, e.g. {surplus[0]}" if surplus else ""
        raise UserError(f"{path} {' and '.join(filter(None, (what, more)))}; expected {OFFICIAL_FILE}")
    for name, shape in expected.items():
        if tuple(found[name].shape) != shape:
            raise UserError(f"{path}: {name} is {tuple(found[name].shape)}, expected {shape}")


def _renamed(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """transformers' names; position ids, which are no weights, are checked and dropped."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if _POSITIONS.search(name):
            if not torch.equal(tensor.flatten().long(), torch.arange(tensor.numel())):
                raise UserError(f"{path}: {name} does not count from 0")
            continue
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    embedding, output = (
        "text_decoder.bert.embeddings.word_embeddings.weight",
        "text_decoder.cls.predictions.decoder.weight",
    )
    if embedding in renamed and output in renamed and not torch.equal(renamed[embedding], renamed[output]):
        raise UserError(f"{path}: {output} differs from the word embeddings, to which BLIP ties it")
    return renamed


def _config_of(weights: Mapping[str, Tensor]) -> BlipConfig:
    """Sizes from the shapes of the weights."""
    patches = weights["visual_encoder.patch_embed.proj.weight"]
    positions = weights["visual_encoder.pos_embed"].shape[1] - 1
    side = int(positions**0.5)
    if side * side != positions:
        raise ValueError(f"a square grid of positions (it has {positions})")
    first = "text_encoder.encoder.layer.0"
    words = weights["text_encoder.embeddings.word_embeddings.weight"]
    vision = {
        "hidden_size": patches.shape[0],
        "intermediate_size": weights["visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _layers(weights, r"visual_encoder\.blocks\.(\d+)\."),
        "patch_size": patches.shape[-1],
        "image_size": side * patches.shape[-1],
    }
    text = {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "encoder_hidden_size": weights[f"{first}.crossattention.self.key.weight"].shape[1],
        "intermediate_size": weights[f"{first}.intermediate.dense.weight"].shape[0],
        "num_hidden_layers": _layers(weights, r"text_encoder\.encoder\.layer\.(\d+)\."),
        "max_position_embeddings": weights["text_encoder.embeddings.position_embeddings.weight"].shape[0],
    }
    return _as_trained(BlipConfig(vision_config=vision, text_config=text))


def _as_trained(config: Any) -> Any:
    """The configuration with what BLIP was trained with, where conversions have defaults."""
    config.vision_config.layer_norm_eps = _VISION_EPSILON
    for part in (config.vision_config, config.text_config):
        part.num_attention_heads = max(1, part.hidden_size // _HEAD_WIDTH)
    return config


def _layers(weights: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(match[1]) for name in weights if (match := re.match(pattern, name)))


def _load_tokenizer(source: str) -> BertTokenizer:
    folder = Path(source).expanduser()
    # A folder of nothing but a vocabulary is enough.
    place = {"pretrained_model_name_or_path": str(folder)} if folder.is_dir() else locate(source, "tokenizer")
    with loading(source, "tokenizer of BLIP (bert-base-uncased)"):
        tokenizer: BertTokenizer = BertTokenizer.from_pretrained(**place)
    return tokenizer
