"""What `--info` finds beside the weights: the other parts of a pipeline, an unfinished training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pixart_core.artifacts.card import CARD, read_card
from pixart_core.artifacts.json_file import read_json
from pixart_core.artifacts.uncond import UNCOND
from pixart_core.conversion.encoder_folders import read_config
from pixart_core.conversion.official import POS_EMBED, Y_EMBEDDING
from pixart_core.conversion.opened import PIPELINE_INDEX, Opened
from pixart_core.conversion.resize import RELEASED_VAE, RELEASED_VAE_FACTOR
from pixart_core.errors import UserError
from pixart_core.training.state import saved_states

STATES = "checkpoints"


def missing_parts(opened: Opened) -> list[str]:
    """What the source's layout has room for and this source lacks."""
    if opened.container == "pipeline":
        index = read_json(opened.path / PIPELINE_INDEX, "expected a pipeline")
        parts = [name for name, value in index.items() if isinstance(value, list)]
        return [part for part in parts if not (opened.path / part).is_dir()]
    buffers = {"official PixArt": (POS_EMBED, Y_EMBEDDING), "original DiT": (POS_EMBED,)}
    missing = [name for name in buffers.get(opened.format, ()) if name not in opened.weights]
    if opened.container == "checkpoint" and opened.facts.uncond == "learned" and opened.y_embedding is None:
        missing.append(UNCOND)
    return missing


def vae_factor(opened: Opened) -> tuple[int, bool]:
    """(pixels per latent pixel of the model's VAE, whether that is known and not assumed)."""
    try:
        config = read_config(opened.facts.vae, "vae") or {}
        return int(2 ** (len(config["block_out_channels"]) - 1)), True
    except (UserError, KeyError, TypeError):
        return RELEASED_VAE_FACTOR, opened.facts.vae == RELEASED_VAE


def card_progress(path: Path) -> dict[str, Any]:
    """Steps and images of a finished training, from its card."""
    details: Mapping[str, Any] = (read_card(path) or {}).get("details", {})
    return {name: details[name] for name in ("steps", "images") if name in details}


def unfinished_training(path: Path) -> tuple[dict[str, Any], Path | None] | None:
    """({"steps", "max_train_steps"}, newest averaged weights) of a training that goes on; None: none here."""
    if not (path / STATES).is_dir() or (path / CARD).exists():
        return None
    states = saved_states(path / STATES)
    progress: dict[str, Any] = {"steps": 0}
    if states:
        progress["steps"] = int(states[-1].name.removeprefix("step_"))
    try:
        options = json.loads((path / ".run.json").read_text())["options"]
        progress["max_train_steps"] = options["max_train_steps"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # an older or damaged marker: the steps done are told all the same
    weights = states[-1] / "ema.safetensors" if states else None
    return progress, weights if weights is not None and weights.exists() else None
