"""How far a re-parameterised PixArt is from its DiT at each timestep."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pixart_core.conversion.from_dit import ClassCondition
from pixart_core.models.dit import DiTTransformer
from pixart_core.models.pixart import PixArtTransformer
from pixart_core.progress import Progress, Silent
from pixart_core.seeding import derive_seed

TIMESTEPS = (*range(0, 1000, 100), 999)
# Side of the compared latents: the error hardly depends on it, the time does (XL/2 on a CPU).
MAX_SIDE = 16


@torch.no_grad()
def measure_agreement(
    dit: DiTTransformer,
    pixart: PixArtTransformer,
    *,
    class_condition: ClassCondition = "null",
    timesteps: tuple[int, ...] = TIMESTEPS,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Relative error |PixArt - DiT| / |DiT| at each timestep, on noise and a random caption.

    Returns:
        One row a timestep: "timestep", "modulation" (all blocks' shifts, scales and gates), "final"
        (the final layer's) and "output" (the whole model). The DiT gets the null class, or no
        class at all where `class_condition` is "none".
    """
    progress = progress or Silent()
    config = pixart.config
    generator = torch.Generator().manual_seed(derive_seed(seed, "agreement"))
    side = min(config.sample_size, MAX_SIDE) // config.patch_size * config.patch_size
    latents = torch.randn(1, config.in_channels, side, side, generator=generator)
    text = torch.randn(1, 8, config.caption_channels, generator=generator)
    labels = torch.tensor([dit.null_class])
    if class_condition == "none":
        dit = _without_class(dit)

    rows = []
    progress.start("compare with the DiT", len(timesteps))
    for timestep in timesteps:
        t = torch.tensor([timestep])
        blocks, final = _dit_modulation(dit, t, labels)
        our_blocks, our_final = _pixart_modulation(pixart, t)
        rows.append(
            {
                "timestep": timestep,
                "modulation": _relative(our_blocks, blocks),
                "final": _relative(our_final, final),
                "output": _relative(pixart(latents, t, text), dit(latents, t, labels)),
            }
        )
        progress.advance("compare with the DiT", note=f"t={timestep} {rows[-1]['output']:.1e}")
    progress.finish("compare with the DiT")
    return rows


def _without_class(dit: DiTTransformer) -> DiTTransformer:
    """The same DiT with a class embedding of zeros; all other weights are shared."""
    table = "class_embedder.embedding_table.weight"
    weights = {
        name: torch.zeros_like(tensor) if name.endswith(table) else tensor
        for name, tensor in dit.state_dict().items()
    }
    with torch.device("meta"):
        twin = DiTTransformer(dit.config)
    twin.load_state_dict(weights, strict=True, assign=True)
    return twin


def _dit_modulation(
    dit: DiTTransformer, t: Tensor, labels: Tensor
) -> tuple[Float[Tensor, "depth 6 d"], Float[Tensor, "1 2 d"]]:
    blocks: Any = dit.transformer_blocks
    conditions, embedding = dit.conditions(t, labels)
    own = [block.modulation(condition) for block, condition in zip(blocks, conditions, strict=True)]
    return torch.cat(own), dit.final_modulation(embedding)


def _pixart_modulation(
    pixart: PixArtTransformer, t: Tensor
) -> tuple[Float[Tensor, "depth 6 d"], Float[Tensor, "1 2 d"]]:
    blocks: Any = pixart.transformer_blocks
    condition, embedding = pixart.condition(t, None, None)
    return torch.cat([block.modulation(condition) for block in blocks]), pixart.final_modulation(embedding)


def _relative(ours: Tensor, theirs: Tensor) -> float:
    # A DiT that was only just initialised has a zero output: then any difference counts in full.
    return ((ours - theirs).norm() / theirs.norm().clamp_min(1e-12)).item()


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    lines = ["timestep  modulation  final layer  output"]
    lines += [
        f"{row['timestep']:8d}  {row['modulation']:10.2e}  {row['final']:11.2e}  {row['output']:.2e}"
        for row in rows
    ]
    return "\n".join(lines)


def plot_agreement(rows: list[dict[str, Any]], path: Path, timestep: int | None) -> None:
    """A small picture of the errors against the timestep; zero at `timestep`, or (None) everywhere."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    lines = (("modulation", "modulation of the blocks"), ("final", "final layer"), ("output", "output"))
    for key, label in lines:
        axes.plot([r["timestep"] for r in rows], [r[key] for r in rows], marker="o", ms=3, label=label)
    if timestep is not None:
        axes.axvline(timestep, color="0.7", lw=0.8, zorder=0)
    axes.set(xlabel="timestep", ylabel="relative error", xlim=(-10, 1009), ylim=(0, None))
    axes.set_title("PixArt against the DiT that it was made from", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)
