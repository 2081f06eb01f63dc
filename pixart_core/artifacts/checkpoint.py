"""What a checkpoint's weights alone do not tell: how to diffuse with them, and with which encoders."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pixart_core.artifacts.card import Card
from pixart_core.errors import UserError

PredictionType = Literal["epsilon", "v_prediction", "sample"]
TRANSFORMER = "transformer"
LOG = "log.jsonl"


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """Kept in the card of every checkpoint as `details.model`; defaults are those of the released weights.

    Attributes:
        prediction_type: what the network's output means.
        uncond: what an empty caption is: the learned embedding (`y_embedding`) or the encoded "".
        vae, text_encoder: hub id or path that sampling loads.
        max_tokens: caption length in tokens.
        label_names: names of the classes of a class-conditional model.
    """

    prediction_type: PredictionType = "epsilon"
    uncond: Literal["learned", "empty"] = "empty"
    vae: str = "stabilityai/sd-vae-ft-ema"
    text_encoder: str = "google/t5-v1_1-xxl"
    max_tokens: int = 120
    label_names: tuple[str, ...] = ()

    def to_details(self) -> dict[str, Any]:
        """The entry of a card's details."""
        return {"model": dataclasses.asdict(self)}

    @classmethod
    def from_details(cls, details: Mapping[str, Any]) -> Self:
        """Read the entry that `to_details` made; absent means released weights."""
        facts = dict(details.get("model", {}))
        if "label_names" in facts:
            facts["label_names"] = tuple(facts["label_names"])
        return cls(**facts)


def read_checkpoint_card(folder: Path) -> Card:
    """The card of a finished train or convert step.

    Raises:
        UserError: no checkpoint there, or a training that has not finished.
    """
    if (folder / "checkpoints").is_dir() and not (folder / "card.json").exists():
        raise UserError(f"{folder} is a training that has not finished; run it again to continue it")
    return Card.read(folder, "checkpoint")
