"""From options to a model that can draw: prompts encoded, text encoder freed, transformer and VAE loaded."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pixart_core.artifacts.samples import SampleRecord
from pixart_core.encoders.pretrained import locate
from pixart_core.encoders.text import TextEncoder, load_text_encoder
from pixart_core.errors import UserError
from pixart_core.models.files import empty_model, load_weights
from pixart_core.progress import Progress, Silent
from pixart_core.recipe.sample import SampleStep
from pixart_core.sampling.memory import MemoryWatch, enough_memory
from pixart_core.sampling.model import SamplingModel, load_model
from pixart_core.sampling.outline import ModelOutline, fetch_weights
from pixart_core.sampling.prompt_tokens import encode_prompts, texts_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
REMEDY = "set offload=sequential (slower, same pictures), text_encoder_quantization=8bit or dtype=bf16"
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
    check_files(outline)
    dtype = DTYPES[step.dtype]
    learned = outline.learned_uncond is not None
    memory = MemoryWatch(device)
    with memory.phase("text_encoder"), enough_memory("in the text encoder", REMEDY):
        tokens = encode_prompts(
            texts_of(batches, empty_is_learned=learned),
            texts_of(mine, empty_is_learned=learned),
            lambda: _text_encoder(outline, step, device),
            max_tokens=outline.facts.max_tokens,
            dtype=dtype,
            folder=folder or Path(tempfile.gettempdir()),
            progress=progress or Silent(),
        )
    with memory.phase("loading"):
        return load_model(
            outline,
            tokens,
            device,
            dtype,
            vae_waits=step.offload == "sequential" and device.type != "cpu",
            vae_tiling=step.vae_tiling,
            memory=memory,
        )


def check_files(outline: ModelOutline) -> None:
    """Look at the files of transformer and VAE, whose turn comes after a long encoding, without reading them.

    Raises:
        UserError: weights that are not there, are truncated, or do not fit their config.
    """
    folder = fetch_weights(outline)
    empty_model(outline.config, load_weights(folder), folder)
    vae = Path(locate(outline.facts.vae, "vae")["pretrained_model_name_or_path"])
    for file in sorted(vae.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass  # opening compares the header with the length of the file
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is truncated or no safetensors file: {error}") from error


def _text_encoder(outline: ModelOutline, step: SampleStep, device: torch.device) -> TextEncoder:
    encoder = load_text_encoder(
        outline.facts.text_encoder,
        device,
        DTYPES[step.dtype],
        quantization=step.text_encoder_quantization,
        offload=step.offload,
    )
    if encoder.channels != outline.config.caption_channels:
        raise UserError(
            f"{outline.source} takes tokens of width {outline.config.caption_channels}, those of its text "
            f"encoder {encoder.name} have {encoder.channels}: it is another model's"
        )
    return encoder
