"""Random vision-language models of other classes than LLaVA, saved as the hub's models are."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

WORDS = (
    "a small large red green blue circle square on white background . USER ASSISTANT : Describe this image"
)
TEXT = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def tokenizer(special: list[str]) -> tuple[Any, dict[str, int]]:
    """(tokenizer of words, its vocabulary)."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *special, *WORDS.split()]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    whole = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=special,
    )  # fmt: skip
    return fast, vocabulary


def save_tiny_idefics3(folder: Path) -> Path:
    """Many tokens for a large image, few for a small one: it is cut into tiles of 32 px."""
    special = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    special += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    fast, vocabulary = tokenizer(special)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(images, fast, image_seq_len=4, chat_template=CHAT_TEMPLATE)
    config = Idefics3Config(
        text_config=TEXT | {"model_type": "llama", "vocab_size": len(vocabulary)},
        vision_config={
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8,
        },
        scale_factor=2, image_token_id=vocabulary["<image>"], pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return _save(Idefics3ForConditionalGeneration(config), processor, folder)


def save_tiny_blip2(folder: Path) -> Path:
    """No chat template: it goes on from the text it is given."""
    fast, vocabulary = tokenizer(["<image>"])
    images = BlipImageProcessorPil(size={"height": 16, "width": 16})
    processor = Blip2Processor(images, fast, num_query_tokens=2)
    small = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    }  # fmt: skip
    config = Blip2Config(
        vision_config=small | {"image_size": 16, "patch_size": 8},
        qformer_config=small | {"vocab_size": 20, "encoder_hidden_size": 32, "cross_attention_frequency": 1},
        text_config={
            "model_type": "opt", "vocab_size": len(vocabulary), "hidden_size": 32, "ffn_dim": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 32, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 64,
        },
        num_query_tokens=2, image_token_index=vocabulary["<image>"],
    )  # fmt: skip
    torch.manual_seed(0)
    return _save(Blip2ForConditionalGeneration(config), processor, folder)


def save_qwen2_vl_config(folder: Path) -> Path:
    """What is read first of a Qwen2-VL: its processor takes videos too."""
    from transformers import Qwen2VLConfig
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    fast, vocabulary = tokenizer(["<|image_pad|>", "<|video_pad|>"])
    Qwen2VLConfig(text_config={"vocab_size": len(vocabulary)}).save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    fast.save_pretrained(folder)
    (folder / "processor_config.json").write_text('{"processor_class": "Qwen2VLProcessor"}')
    return folder


def _save(model: Any, processor: Any, folder: Path) -> Path:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.3)  # the usual 0.02 gives every picture the same words
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
