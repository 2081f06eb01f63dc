"""`resume_certificate.json`: that a killed and continued training was seen to end bit-identical."""

import json
from pathlib import Path
from typing import Any

import torch

from pixart_core import __version__
from pixart_core.artifacts.card import fingerprint
from pixart_core.recipe.sameness import recorded
from pixart_core.recipe.training import TrainStep

CERTIFICATE = "resume_certificate.json"


def training_fingerprint(step: TrainStep) -> str:
    """16 hex digits over what decides a training, but for its length."""
    now = recorded(step)
    now["options"].pop("max_train_steps")
    return fingerprint(now)


def fitting_certificate(output: Path, step: TrainStep) -> dict[str, Any] | None:
    """What a card says of the certificate in `output`; None when it is of something else."""
    try:
        held = json.loads((output / CERTIFICATE).read_text())
        fits = held["recipe"]["fingerprint"] == training_fingerprint(step)
        versions = (held["versions"]["pixart"], held["versions"]["torch"])
        about = {name: held[name] for name in ("identical", "steps", "processes")}
        about["kills"] = len(held["kills"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return about if fits and versions == (__version__, torch.__version__) else None
