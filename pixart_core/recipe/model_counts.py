"""Parameters, FLOPs and activations of a transformer, from its options alone."""

import dataclasses

from pixart_core.recipe.training import ModelOptions

T5_XXL_WIDTH = 4096
T5_TOKENS = 120  # paper 3.1
IMAGENET_CLASSES = 1000
SINUSOID = 256

# Bytes that a block keeps for the backward pass, for a channel of a token: first what text and class share,
# then what cross-attention adds. With bf16 autocast on a GPU LayerNorm keeps its input and output in fp32,
# and query, key and value each their own bf16 copy of it.
_KEPT = {
    ("bf16", "none"): (52, 6),
    ("bf16", "selective"): (22, 6),
    ("bf16", "full"): (2, 0),
    ("no", "none"): (80, 12),
    ("no", "selective"): (44, 12),
    ("no", "full"): (4, 0),
}


@dataclasses.dataclass(frozen=True)
class Interface:
    """What a transformer meets: channels of latents and captions, tokens of a caption, classes."""

    latent_channels: int = 4
    caption_channels: int = T5_XXL_WIDTH
    text_tokens: int = T5_TOKENS
    classes: int = IMAGENET_CLASSES


def model_width(model: ModelOptions) -> int:
    """Channels of a token."""
    return model.num_attention_heads * model.attention_head_dim


def _per_block_modulation(model: ModelOptions) -> bool:
    """Whether each block has an MLP of its own (adaLN) instead of a table (adaLN-single)."""
    return (model.modulation or ("adaln_single" if model.conditioning == "text" else "adaln")) == "adaln"


def parameters(
    model: ModelOptions,
    *,
    latent_channels: int = 4,
    caption_channels: int = T5_XXL_WIDTH,
    classes: int = IMAGENET_CLASSES,
) -> int:
    """Trainable parameters (PixArt XL/2: 610,856,096; with sizes 611,349,152).

    With adaln a block's table of 6 vectors becomes an MLP to 6 vectors, and so in the final layer. A class
    model has a table of classes, one more than there are, instead of captions and cross-attention.
    """
    width, patch, text = model_width(model), model.patch_size**2, model.conditioning == "text"
    channels_out = latent_channels * (2 if model.learned_variance else 1)
    own, shared = (width + 1) * width, 0
    if not _per_block_modulation(model):
        own, shared = width, 6 * (width + 1) * width
    block = (16 * width**2 + 13 * width if text else 12 * width**2 + 9 * width) + 6 * own
    timestep = (SINUSOID + 1) * width + (width + 1) * width
    condition = (caption_channels + 1 + width + 1) * width if text else (classes + 1) * width
    patches = (latent_channels * patch + 1) * width
    final = 2 * own + patch * channels_out * (width + 1)
    sizes = 0
    if text and model.use_additional_conditions:
        third = width // 3
        sizes = 2 * ((SINUSOID + 1) * third + (third + 1) * third)
    return model.num_layers * block + timestep + shared + condition + patches + final + sizes


def forward_flops(
    model: ModelOptions, tokens: int, interface: Interface, routed: tuple[int, int] = (0, 0)
) -> int:
    """Floating-point operations of one picture's forward pass (a multiply-add is two).

    Matrix products and attention, every caption padded to `text_tokens`: what torch's `FlopCounterMode`
    counts, to the digit.

    Args:
        routed: number of blocks that not all tokens take, and how many tokens take them (token routing).
    """
    width, length = model_width(model), interface.text_tokens
    text = model.conditioning == "text"
    # Multiply-adds from here on.
    blocks = (model.num_layers - routed[0]) * _block(model, tokens, interface)
    blocks += routed[0] * _block(model, routed[1], interface)
    modulation = (2 if _per_block_modulation(model) else 6) * width**2
    channels_out = interface.latent_channels * (2 if model.learned_variance else 1)
    final = tokens * model.patch_size**2 * channels_out * width
    rest = width**2 + (length * width**2 if text else 0)  # second layers of the timestep and caption MLPs
    if text and model.use_additional_conditions:
        rest += 3 * (width // 3) ** 2
    products = blocks + modulation + final + rest
    return 2 * (products + _first_layers(model, tokens, interface))


def _block(model: ModelOptions, tokens: int, interface: Interface) -> int:
    """Multiply-adds of a block that takes `tokens`."""
    width, length = model_width(model), interface.text_tokens
    products = 12 * tokens * width**2 + 2 * tokens**2 * width
    if model.conditioning == "text":
        products += 2 * (tokens + length) * width**2 + 2 * tokens * length * width
    return products + (6 * width**2 if _per_block_modulation(model) else 0)


def _first_layers(model: ModelOptions, tokens: int, interface: Interface) -> int:
    """Multiply-adds of the layers whose input is data: patches, sinusoids, captions."""
    width = model_width(model)
    products = tokens * model.patch_size**2 * interface.latent_channels * width + SINUSOID * width
    if model.conditioning == "text":
        products += interface.text_tokens * interface.caption_channels * width
        if model.use_additional_conditions:
            products += 3 * SINUSOID * (width // 3)
    return products


def training_flops(
    model: ModelOptions, tokens: int, interface: Interface, routed: tuple[int, int] = (0, 0)
) -> int:
    """Forward and backward pass of one picture: three times the forward, as is usual for MFU.

    The backward pass makes gradients of inputs and of weights; those of the data itself, which nobody needs,
    are counted too (0.1 % of XL/2 at 256 px). What gradient checkpointing computes again is not.
    """
    return 3 * forward_flops(model, tokens, interface, routed)


def activation_bytes(
    model: ModelOptions, tokens: int, interface: Interface, *, precision: str, checkpointing: str
) -> int:
    """Bytes that the blocks keep of one picture for the backward pass, attention being fused.

    With checkpointing, plus those of the one block that is computed again.
    """
    width, length = model_width(model), interface.text_tokens
    text = model.conditioning == "text"

    def block(mode: str) -> int:
        shared, cross = _KEPT[precision, mode]
        key_value = (4 if precision == "bf16" else 8) * length if text and mode != "full" else 0
        return width * ((shared + (cross if text else 0)) * tokens + key_value)

    kept = model.num_layers * block(checkpointing)
    return kept if checkpointing == "none" else kept + block("none")
