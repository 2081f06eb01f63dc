"""`pixart convert --to pixart` of a DiT: the PixArt that agrees with it, and its error at each timestep."""

from pathlib import Path
from typing import Any

from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.artifacts.publish import write_json
from pixart_core.conversion.agreement import TIMESTEPS, format_table, measure_agreement, plot_agreement
from pixart_core.conversion.encoder_folders import read_config, text_width
from pixart_core.conversion.from_dit import pixart_from_dit, with_definition
from pixart_core.errors import UserError
from pixart_core.models.dit import DiTTransformer
from pixart_core.models.pixart import PixArtTransformer
from pixart_core.progress import Progress
from pixart_core.recipe.schema import ConvertStep

T5_XXL_WIDTH = 4096
ERRORS_FILE, ERRORS_PLOT = "reparameterisation.json", "reparameterisation.png"


def reparameterise(
    step: ConvertStep, dit: DiTTransformer, facts: ModelFacts, folder: Path, progress: Progress
) -> tuple[PixArtTransformer, dict[str, Any]]:
    """The PixArt of `dit` as `step` asks for it; `folder` gets its errors as numbers and picture.

    Weights that both have stay as they are stored (mapped from a file, maybe in half precision) until they
    are written; differences of weights are computed in float64.

    Returns:
        The model, and "reparameterisation" (rows of `measure_agreement`) and "notes" for the result.

    Raises:
        UserError: `caption_channels` is not what the text encoder says.
    """
    dit, reason = with_definition(dit, step.dit_definition)
    pixart = pixart_from_dit(
        dit,
        caption_channels=caption_width(step, facts),
        modulation=step.modulation,
        timestep=step.timestep,
        class_condition=step.class_condition,
        shared_mlp=step.shared_mlp,
        seed=step.seed,
    )
    rows = measure_agreement(
        dit,
        pixart,
        class_condition=step.class_condition,
        timesteps=tuple(sorted({*TIMESTEPS, step.timestep})),
        seed=step.seed,
        progress=progress,
    )
    progress.say("relative error against the DiT\n" + format_table(rows))
    write_json(folder / ERRORS_FILE, rows)
    exact = dit.config.modulation == step.modulation
    plot_agreement(rows, folder / ERRORS_PLOT, None if exact else step.timestep)
    return pixart, {"reparameterisation": rows, "notes": [reason] if reason else []}


def caption_width(step: ConvertStep, facts: ModelFacts) -> int:
    """Width of the text encoder's tokens: as given, as the encoder says, or that of T5 XXL.

    Raises:
        UserError: what is given is not what the encoder says.
    """
    source = facts.text_encoder
    known = step.text_encoder is not None or Path(source).is_dir()
    config = read_config(source, "text_encoder") if known else None
    width = text_width(config) if config else None
    if width is not None and step.caption_channels not in (None, width):
        raise UserError(
            f"caption_channels is {step.caption_channels}, but the text encoder {source} has "
            f"tokens of width {width}; set caption_channels={width}"
        )
    return step.caption_channels or width or T5_XXL_WIDTH
