"""Re-parameterisation: a DiT as a PixArt that agrees with it at one timestep (paper 2.3).

A DiT block computes its own modulation S_i = W_i SiLU(c) + b_i with c = t + class; adaLN-single shares
F(t) = W SiLU(t) + b and adds a constant E_i. With E_i = S_i - F at t = 500 both agree there.

A PixArt that keeps the DiT's own modulation (adaln: the ablation) agrees at every timestep: the null class
is a constant, and moves into the last bias of the timestep MLP.
"""

import dataclasses
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pixart_core.errors import UserError
from pixart_core.models.build import build_transformer
from pixart_core.models.config import Modulation, TransformerConfig
from pixart_core.models.dit import DiTTransformer
from pixart_core.models.embeddings import EmbeddingMLP, sinusoid
from pixart_core.models.pixart import PixArtTransformer
from pixart_core.seeding import derive_seed

ClassCondition = Literal["null", "none"]
SharedMLP = Literal["mean", "first", "zero", "random"]
Definition = Literal["auto", "original", "diffusers"]
# `mlp_norm_eps` of DiT and of PixArt; only diffusers' DiT class has another.
NORM_EPS = 1e-6


def pixart_from_dit(
    dit: DiTTransformer,
    *,
    caption_channels: int,
    modulation: Modulation = "adaln_single",
    timestep: int = 500,
    class_condition: ClassCondition = "null",
    shared_mlp: SharedMLP = "mean",
    seed: int = 0,
) -> PixArtTransformer:
    """A PixArt that equals `dit` at `timestep`, whatever the caption (its cross-attention is silent).

    With the modulation that `dit` has, it equals `dit` at every timestep, and neither `timestep` nor
    `shared_mlp` is used. What both have in common is shared with `dit`, not copied, and so of its type; all
    that is computed or new is float32.

    Args:
        caption_channels: width of the text encoder's tokens.
        class_condition: c in S_i. "null": timestep and null class, which training with dropped labels
            saw; "none": the timestep alone (the paper's words).
        shared_mlp: W, b of F: mean over the blocks, the first block's, zeros, or newly drawn.
        seed: of what is new (cross-attention, caption projection, "random").

    Raises:
        UserError: `dit` cannot be written with this modulation.
    """
    config = config_from_dit(dit, caption_channels=caption_channels, modulation=modulation)
    weights = _new(config, seed) | _kept(dit, modulation)
    if dit.config.modulation == modulation:
        _fold_class(weights, dit, modulation, class_condition)
    else:
        _set_shared_mlp(weights, dit, shared_mlp)
        _set_tables(weights, dit, timestep, class_condition)
    with torch.device("meta"):
        pixart = build_transformer(config)
    assert isinstance(pixart, PixArtTransformer)
    pixart.load_state_dict(weights, strict=True, assign=True)
    return pixart.requires_grad_(True)


def config_from_dit(
    dit: DiTTransformer, *, caption_channels: int, modulation: Modulation
) -> TransformerConfig:
    """That of `pixart_from_dit`.

    Raises:
        UserError: `dit` cannot be written with this modulation.
    """
    exact = keeps_modulation(dit, modulation)
    return dataclasses.replace(
        dit.config,
        conditioning="text",
        modulation=modulation,
        caption_channels=caption_channels,
        timestep_freq_shift=dit.config.timestep_freq_shift if exact else 0,
        embedders="shared",
        mlp_norm_eps=dit.config.mlp_norm_eps if exact else NORM_EPS,
    )


def keeps_modulation(dit: DiTTransformer, modulation: Modulation) -> bool:
    """Whether a PixArt with `modulation` computes it as `dit` does, and so equals it at every timestep.

    Raises:
        UserError: it would have to, and cannot.
    """
    if dit.config.modulation != modulation:
        if modulation == "adaln":
            raise UserError(
                "modulation=adaln keeps the MLP of each block, and this DiT has one for all (adaln_single); "
                "leave modulation out"
            )
        return False
    if dit.config.embedders == "per_block" and not _embedders_are_copies(dit):
        raise UserError(
            "modulation=adaln needs one timestep embedder for all blocks; this DiT (trained in diffusers' "
            "class) has several; modulation=adaln_single is exact at one timestep"
        )
    return True


def _embedder_prefix(modulation: Modulation) -> str:
    """Where a PixArt has its timestep embedder."""
    emb = "adaln_single.emb" if modulation == "adaln_single" else "emb"
    return f"{emb}.timestep_embedder"


def _kept(dit: DiTTransformer, modulation: Modulation) -> dict[str, Tensor]:
    """What PixArt takes over as it is, under its names; of several timestep embedders the first."""
    weights = {name: t for name, t in dit.state_dict().items() if "_embedder." not in name}
    if dit.config.modulation != modulation:
        dropped = (".norm1.linear.", "proj_out_1.")
        weights = {name: t for name, t in weights.items() if not any(part in name for part in dropped)}
        for parameter in ("weight", "bias"):
            weights[f"proj_out.{parameter}"] = weights.pop(f"proj_out_2.{parameter}")
    prefix = _embedder_prefix(modulation)
    embedder = dit.embedder(0).timestep_embedder.state_dict()
    return weights | {f"{prefix}.{name}": tensor for name, tensor in embedder.items()}


def _fold_class(
    weights: dict[str, Tensor], dit: DiTTransformer, modulation: Modulation, class_condition: ClassCondition
) -> None:
    """t + null class, a constant, as the last bias of the timestep MLP."""
    if class_condition == "null":
        name = f"{_embedder_prefix(modulation)}.linear_2.bias"
        table = dit.embedder(0).class_embedder.embedding_table.weight.detach()
        weights[name] = (weights[name].double() + table[dit.null_class].double()).float()


def _new(config: TransformerConfig, seed: int) -> dict[str, Tensor]:
    """Newly drawn caption projection, cross-attentions (silent) and, with adaln_single, shared MLP.

    Drawn by models of one block, a block at a time: memory stays small, and block i's draw does not
    depend on how many blocks there are.
    """
    new: dict[str, Tensor] = {}
    one_block = dataclasses.replace(config, num_layers=1)
    for index in range(config.num_layers):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "from_dit", index))
            fresh = build_transformer(one_block).state_dict()
        for name, tensor in fresh.items():
            if name.startswith("transformer_blocks.0.attn2."):
                new[name.replace(".0.", f".{index}.", 1)] = tensor
            elif index == 0 and name.startswith(("caption_projection.", "adaln_single.linear.")):
                new[name] = tensor
    return new


def _set_shared_mlp(weights: dict[str, Tensor], dit: DiTTransformer, shared_mlp: SharedMLP) -> None:
    if shared_mlp == "random":
        return
    for parameter in ("weight", "bias"):
        name = f"adaln_single.linear.{parameter}"
        of_blocks = [getattr(_modulation(dit, i), parameter).detach() for i in range(dit.config.num_layers)]
        if shared_mlp == "mean":
            total = torch.zeros_like(of_blocks[0], dtype=torch.float64)
            for tensor in of_blocks:
                total += tensor.double()
            weights[name] = (total / len(of_blocks)).float()
        elif shared_mlp == "first":
            weights[name] = of_blocks[0].to(torch.float32, copy=True)
        else:
            weights[name] = torch.zeros_like(of_blocks[0], dtype=torch.float32)


def _set_tables(
    weights: dict[str, Tensor], dit: DiTTransformer, timestep: int, class_condition: ClassCondition
) -> None:
    """E_i = S_i - F of every block and E_f = S_f - tau of the final layer, in float64."""
    tau = _embed(dit.embedder(0).timestep_embedder, timestep, freq_shift=0)
    shared = functional.linear(
        functional.silu(tau),
        weights["adaln_single.linear.weight"].double(),
        weights["adaln_single.linear.bias"].double(),
    )
    for index in range(dit.config.num_layers):
        condition = _condition(dit, index, timestep, class_condition)
        table = _linear(_modulation(dit, index), functional.silu(condition)) - shared
        weights[f"transformer_blocks.{index}.scale_shift_table"] = table.view(6, -1).float()
    final = _linear(dit.proj_out_1, functional.silu(_condition(dit, 0, timestep, class_condition)))
    # The final layer of PixArt adds the raw embedding to both of its rows.
    weights["scale_shift_table"] = (final.view(2, -1) - tau).float()


def _condition(
    dit: DiTTransformer, block: int, timestep: int, class_condition: ClassCondition
) -> Float[Tensor, " d"]:
    """c as `block` of the DiT computes it, with its own embedder and the DiT's own frequencies."""
    tau = _embed(dit.embedder(block).timestep_embedder, timestep, dit.config.timestep_freq_shift)
    if class_condition == "none":
        return tau
    table = dit.embedder(block).class_embedder.embedding_table.weight.detach()
    return tau + table[dit.null_class].double()


def _modulation(dit: DiTTransformer, block: int) -> torch.nn.Linear:
    """W_i, b_i."""
    layer: Any = dit.transformer_blocks[block]
    linear: torch.nn.Linear = layer.norm1.linear
    return linear


def _embed(embedder: EmbeddingMLP, timestep: int, freq_shift: int) -> Float[Tensor, " d"]:
    waves = sinusoid(torch.tensor([timestep]), freq_shift)[0].double()
    return _linear(embedder.linear_2, functional.silu(_linear(embedder.linear_1, waves)))


def _linear(layer: torch.nn.Linear, x: Float[Tensor, " d"]) -> Float[Tensor, " out"]:
    return functional.linear(x, layer.weight.detach().double(), layer.bias.detach().double())


def with_definition(
    dit: DiTTransformer, definition: Definition = "auto"
) -> tuple[DiTTransformer, str | None]:
    """(the DiT under the definition that its weights were trained with, what was decided and why).

    diffusers' `DiTTransformer2DModel` uses a frequency shift of 1 in the timestep embedding where DiT
    uses 0, another eps, and one embedder a block. Weights that were converted from DiT into that
    class hold the same embedder in every block, and mean what DiT computes; weights trained in that
    class hold different ones. "auto" decides by that. A DiT with shift 0 is returned as it is.
    """
    if dit.config.timestep_freq_shift == 0 or definition == "diffusers":
        return dit, None
    copies = dit.config.num_layers > 1 and _embedders_are_copies(dit)
    if definition == "auto" and not copies:
        return dit, (
            "every block has its own timestep embedder: taken as trained in diffusers' class "
            "(frequency shift 1)"
        )
    config = dataclasses.replace(
        dit.config,
        timestep_freq_shift=0,
        mlp_norm_eps=NORM_EPS,
        embedders="shared" if copies else "per_block",
    )
    weights = dit.state_dict()
    if copies:
        first = "transformer_blocks.0.norm1.emb."
        shared = {name.replace(first, "emb."): t for name, t in weights.items() if name.startswith(first)}
        weights = {name: t for name, t in weights.items() if ".norm1.emb." not in name} | shared
    with torch.device("meta"):
        original = build_transformer(config)
    assert isinstance(original, DiTTransformer)
    original.load_state_dict(weights, strict=True, assign=True)
    reason = (
        "the timestep embedders of all blocks are copies: taken as weights of the original DiT"
        if copies
        else "the original DiT's definition was asked for"
    )
    return original.requires_grad_(True), f"{reason} (frequency shift 0; diffusers runs them with 1)"


def _embedders_are_copies(dit: DiTTransformer) -> bool:
    first = dit.embedder(0).state_dict()
    return all(
        all(torch.equal(tensor, first[name]) for name, tensor in dit.embedder(index).state_dict().items())
        for index in range(1, dit.config.num_layers)
    )
