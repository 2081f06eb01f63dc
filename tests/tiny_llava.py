"""A random LLaVA of a few thousand weights with a real processor, saved as the hub's models are."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

WORDS = "a small large red green blue circle square star on white black background . left right of the and"
TEMPLATE_WORDS = "USER ASSISTANT : Describe this image"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> {% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def save_tiny_llava(folder: Path, *, chat_template: bool = True, seed: int = 0) -> Path:
    """Save model and processor in `folder`; equal seeds give equal models."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    words = [
        *special,
        *WORDS.split(),
        *["user", "assistant", "USER", "ASSISTANT", ":", "Describe", "this", "image"],
    ]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        fast,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE if chat_template else None,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16,
            patch_size=8, projection_dim=32,
        ),
        text_config=LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        ),
        image_token_index=vocabulary["<image>"],
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            # Far larger than the usual 0.02: otherwise every picture gets the same words.
            if weight.dim() > 1:
                weight.normal_(0, 0.4)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
