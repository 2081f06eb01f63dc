"""From options to a model that can draw: prompts encoded, text encoder freed, transformer and VAE loaded."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from pixart_core.artifacts.samples import SampleRecord
from pixart_core.encoders.text import TextEncoder, load_text_encoder
from pixart_core.progress import Progress, Silent
from pixart_core.recipe.sample import SampleStep
from pixart_core.sampling.memory import MemoryWatch
from pixart_core.sampling.model import SamplingModel, load_model
from pixart_core.sampling.outline import ModelOutline
from pixart_core.sampling.prompt_tokens import encode_prompts, texts_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Batches = Sequence[Sequence[SampleRecord]]


def prepare_model(
    outline: ModelOutline,
    step: SampleStep,
    batches: Batches,
    mine: Batches,
    device: torch.device,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> SamplingModel:
    """Encode the prompts, let go of the text encoder, then load what draws.

    Args:
        batches: all batches of the set, in order: they decide which prompts are encoded together.
        mine: those that will be drawn here; only what they need is encoded.
        folder: where the tokens of very many prompts are kept meanwhile; default: the system's.

    Raises:
        UserError: an encoder or weights that cannot be loaded, or an encoder whose values are not finite.
        PixartError: no room on the disk for the prompts' tokens.
    """
    dtype = DTYPES[step.dtype]
    learned = outline.learned_uncond is not None
    memory = MemoryWatch(device)

    def load() -> TextEncoder:
        return load_text_encoder(outline.facts.text_encoder, device, dtype)

    with memory.phase("text_encoder"):
        tokens = encode_prompts(
            texts_of(batches, empty_is_learned=learned),
            texts_of(mine, empty_is_learned=learned),
            load,
            max_tokens=outline.facts.max_tokens,
            dtype=dtype,
            folder=folder or Path(tempfile.gettempdir()),
            progress=progress or Silent(),
        )
    with memory.phase("loading"):
        return load_model(outline, tokens, device, dtype, memory=memory)
