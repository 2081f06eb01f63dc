"""A small T5 encoder with frozen random weights, and a tokenizer of whole words.

Enough to tell captions of a small vocabulary apart, built in milliseconds and saved as any T5 is.
"""

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

MAX_TOKENS = 120
_SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2 as in T5

# T5's own initial std of the relative position bias, 1/sqrt(width), hardly moves the attention of an
# untrained encoder. This spread makes the state of a word depend on where it stands and what is near it.
_POSITION_BIAS_STD = 2.0


def build_tokenizer(captions: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of the words and punctuation marks of `captions`, lower-cased; others are <unk>.

    The vocabulary is sorted, so the order of the captions does not matter. `</s>` ends every text, so
    that the empty one has one token.
    """
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    words = {
        word
        for caption in set(captions)
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption))
    }
    vocabulary = {word: number for number, word in enumerate([*_SPECIAL, *sorted(words - set(_SPECIAL))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )


@torch.no_grad()
def build_tiny_t5(
    vocab_size: int, width: int = 64, num_layers: int = 2, num_heads: int = 4, seed: int = 0
) -> T5EncoderModel:
    """A T5 v1.1 encoder of random weights, the same for the same arguments; its states have an rms of 1.

    Args:
        width: channels of a token; a multiple of `num_heads`.
    """
    config = T5Config(
        vocab_size=vocab_size,
        d_model=width,
        d_kv=width // num_heads,
        d_ff=2 * width,
        num_layers=num_layers,
        num_heads=num_heads,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        dropout_rate=0.0,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5EncoderModel(config)
        first: Any = model.encoder.block[0]
        first.layer[0].SelfAttention.relative_attention_bias.weight.normal_(std=_POSITION_BIAS_STD)
    return model.eval().requires_grad_(False)
