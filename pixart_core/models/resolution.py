"""Another resolution for the same weights: one operation, used by `pixart train` and `pixart convert`.

What a patch at row or column k of a grid of g patches is told of its place is (`sincos_positions`)

    k * base / g / scale        base = sample_size / patch_size, scale = interpolation_scale

so a side of any length spans [0, base / scale). Nothing of it is stored in the weights. `docs/resolution.md`
says which changes are exact and what the others cost.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from pixart_core.errors import UserError
from pixart_core.models.build import Transformer, build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.embeddings import EmbeddingMLP
from pixart_core.models.initialisation import initialise
from pixart_core.seeding import derive_seed


@dataclasses.dataclass(frozen=True)
class Resolution:
    """What `change_resolution` sets; its arguments of the same names.

    Attributes:
        sample_size: side of the latents that one step from patch to patch is meant for.
        interpolation_scale: divides the positions.
        use_additional_conditions: micro-conditions; None: as in the model.
    """

    sample_size: int
    interpolation_scale: float = 1.0
    use_additional_conditions: bool | None = None


# Position scale and micro-conditions of the released weights, by resolution in pixels.
_RELEASED = {256: (1.0, False), 512: (1.0, False), 1024: (2.0, True)}
RELEASED_RESOLUTIONS = tuple(_RELEASED)


def released_resolution(pixels: int, vae_factor: int = 8) -> Resolution:
    """Positions and micro-conditions of the released weights for 256, 512 or 1024 pixels.

    Args:
        vae_factor: pixels per latent pixel, along a side.

    Raises:
        UserError: latents of that VAE do not divide the resolution.
    """
    scale, additional = _RELEASED[pixels]
    if pixels % vae_factor:
        raise UserError(f"resolution {pixels} is not a multiple of {vae_factor}, the VAE's pixels per latent")
    return Resolution(pixels // vae_factor, scale, additional)


def position_range(sample_size: int, patch_size: int, interpolation_scale: float) -> float:
    """Where the positions of a side end, in steps from patch to patch: base / scale.

    All that the position table of a given grid depends on: models of equal range compute the same, up to
    rounding.
    """
    return (sample_size // patch_size) / interpolation_scale


def change_resolution(model: Transformer, resolution: Resolution, *, seed: int = 0) -> Transformer:
    """The weights of `model`, shared and not copied, under another position table.

    New size embedders (micro-conditions) draw their first layer from `seed` and start with a zero last
    layer, so that they change no output before they are trained.

    Raises:
        UserError: the model cannot have that resolution, or would lose its micro-conditions.
    """
    before = model.config
    additional = resolution.use_additional_conditions
    if additional is None:
        additional = before.use_additional_conditions
    if before.use_additional_conditions and not additional:
        raise UserError(
            "resolution: use_additional_conditions cannot be taken away from a model that was trained with "
            f"micro-conditions; positions.sample_size={resolution.sample_size} alone keeps them"
        )
    if additional and before.conditioning == "class":
        raise UserError("resolution: micro-conditions are a PixArt's; a class-conditional DiT has none")
    try:
        config = dataclasses.replace(
            before,
            sample_size=resolution.sample_size,
            interpolation_scale=resolution.interpolation_scale,
            use_additional_conditions=additional,
        )
    except ValueError as error:
        raise UserError(f"resolution: {error}") from error
    with torch.device("meta"):
        changed = build_transformer(config)
    weights = model.state_dict()
    missing = changed.state_dict().keys() - weights.keys()
    if missing:
        weights |= _silent_size_embedders(missing, config.width, seed, like=next(model.parameters()))
    changed.load_state_dict(weights, strict=True, assign=True)
    return changed.train(model.training).requires_grad_(True)


def _silent_size_embedders(names: set[str], width: int, seed: int, like: Tensor) -> dict[str, Tensor]:
    """Weights for `names` (`...emb.resolution_embedder.linear_1.weight`, ...); only these are drawn."""
    embedders = nn.ModuleDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "size embedders"))
        for name in ("resolution_embedder", "aspect_ratio_embedder"):
            embedders[name] = EmbeddingMLP(width // 3)
        initialise(embedders, width)
    for embedder in embedders.values():
        assert isinstance(embedder, EmbeddingMLP)
        nn.init.zeros_(embedder.linear_2.weight)
        nn.init.zeros_(embedder.linear_2.bias)
    fresh = {name: tensor.to(like) for name, tensor in embedders.state_dict().items()}
    return {name: fresh[name.rpartition("emb.")[2]] for name in names}


def describe_resolution(config: TransformerConfig) -> dict[str, Any]:
    """What `change_resolution` sets, as a card tells it."""
    return {
        "sample_size": config.sample_size,
        "interpolation_scale": config.interpolation_scale,
        "use_additional_conditions": config.use_additional_conditions,
    }
