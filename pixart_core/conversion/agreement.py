"""How far a re-parameterised PixArt is from its DiT at each timestep."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pixart_core.conversion.from_dit import ClassCondition
from pixart_core.models.dit import DiTTransformer
from pixart_core.models.embeddings import TimestepClassEmbedding
from pixart_core.models.pixart import PixArtTransformer
from pixart_core.progress import Progress, Silent
from pixart_core.seeding import derive_seed

TIMESTEPS = (*range(0, 1000, 100), 999)
# Side of the compared latents: the error hardly depends on it, the time does (XL/2 on a CPU).
MAX_SIDE = 16
COMPARISON = "compare with the DiT"


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
    """Relative error |PixArt - DiT| / |DiT| at each timestep, on noise and a random caption, in float32.

    Both may have any type: a block is cast when its turn comes and let go afterwards.

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

    # All timesteps are one batch, so that each block is cast once.
    t, count = torch.tensor(timesteps), len(timesteps)
    latents, text, labels = latents.repeat(count, 1, 1, 1), text.repeat(count, 1, 1), labels.repeat(count)
    progress.start(COMPARISON, 2 * config.num_layers)
    theirs = _observe(dit, progress, latents, t, labels)
    ours = _observe(pixart, progress, latents, t, text)
    progress.finish(COMPARISON)
    return [
        {
            "timestep": timestep,
            "modulation": _relative(ours.modulation[row], theirs.modulation[row]),
            "final": _relative(ours.final[row], theirs.final[row]),
            "output": _relative(ours.output[row], theirs.output[row]),
        }
        for row, timestep in enumerate(timesteps)
    ]


class _Observed(NamedTuple):
    """What a model computed for each timestep of a batch."""

    modulation: Float[Tensor, "b depth 6 d"]
    final: Float[Tensor, "b 2 d"]
    output: Float[Tensor, "b out h w"]


def _observe(
    model: DiTTransformer | PixArtTransformer,
    progress: Progress,
    latents: Float[Tensor, "b c h w"],
    t: Tensor,
    condition: Tensor,
) -> _Observed:
    """Run `model` in float32, its parts one after another; `condition` is its labels or its caption."""
    blocks: Any = model.transformer_blocks
    modulation: list[Tensor] = []

    def before_block(block: Any, inputs: tuple[Any, ...]) -> None:
        modulation.append(block.modulation(inputs[1]))

    def after_block(*_: object) -> None:
        progress.advance(COMPARISON, note=f"block {len(modulation)} of {len(blocks)}")

    with contextlib.ExitStack() as stack:
        per_block = [m for m in model.modules() if isinstance(m, TimestepClassEmbedding)]
        for part in {*blocks, *per_block}:
            stack.enter_context(_float_while_called(part))
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(before_block).remove)
            stack.callback(block.register_forward_hook(after_block).remove)
        frame = [p for name, p in model.named_parameters() if not name.startswith("transformer_blocks.")]
        stack.enter_context(_as_float(frame))
        output = model(latents, t, condition)
        if isinstance(model, DiTTransformer):
            _, embedding = model.conditions(t, condition)
        else:
            _, embedding = model.condition(t, None, None)
        final = model.final_modulation(embedding)
    return _Observed(torch.stack(modulation, dim=1), final, output)


@contextlib.contextmanager
def _as_float(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Float32 copies in the place of `parameters`, which come back at the end."""
    stored = [parameter.data for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.data = parameter.data.float()
        yield
    finally:
        for parameter, data in zip(parameters, stored, strict=True):
            parameter.data = data


@contextlib.contextmanager
def _float_while_called(module: nn.Module) -> Iterator[None]:
    """Let `module` compute in float32 whenever it is called, holding float32 copies only that long."""
    copies = contextlib.ExitStack()

    def before(*_: object) -> None:
        copies.enter_context(_as_float(list(module.parameters())))

    with contextlib.ExitStack() as hooks:
        hooks.callback(copies.close)  # where the call failed
        hooks.callback(module.register_forward_pre_hook(before).remove)
        hooks.callback(module.register_forward_hook(lambda *_: copies.close()).remove)
        yield


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
