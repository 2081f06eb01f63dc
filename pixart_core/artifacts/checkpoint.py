"""What a checkpoint's weights alone do not tell: what they predict, at what sizes, with which encoders."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pixart_core import __version__
from pixart_core.artifacts.card import Card, read_card
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
        vae_hash, text_encoder_hash: of the weights that made the features trained on; None: not known (the
            released weights), or not seen in training (the text encoder of a class-conditional model).
        vae_scaling_factor: that of training; None: not known.
        max_tokens: caption length in tokens.
        label_names: names of the classes of a class-conditional model.
        trained_sizes: (height, width) in pixels of the pictures trained on; empty: not told, then the square
            of `trained_positions`.
        trained_positions: (sample_size, interpolation_scale) that the weights were trained with; None: those
            of the transformer's config, which nobody has changed.
    """

    prediction_type: PredictionType = "epsilon"
    uncond: Literal["learned", "empty"] = "empty"
    vae: str = "stabilityai/sd-vae-ft-ema"
    text_encoder: str = "google/t5-v1_1-xxl"
    vae_hash: str | None = None
    text_encoder_hash: str | None = None
    vae_scaling_factor: float | None = None
    max_tokens: int = 120
    label_names: tuple[str, ...] = ()
    trained_sizes: tuple[tuple[int, int], ...] = ()
    trained_positions: tuple[int, float] | None = None

    def to_details(self) -> dict[str, Any]:
        """The entry of a card's details, of plain JSON values."""
        return {"model": {name: _plain(value) for name, value in dataclasses.asdict(self).items()}}

    @classmethod
    def from_details(
        cls, details: Mapping[str, Any], source: object = "checkpoint", version: str | None = None
    ) -> Self:
        """Read the entry that `to_details` made; absent means released weights.

        Args:
            source, version: what the details are of and which pixart wrote them, for messages.

        Raises:
            UserError: facts that this version does not know, or values that are none.
        """
        stored = details.get("model", {})
        if not isinstance(stored, Mapping):
            raise UserError(f"{source}: damaged: its card's details.model is {type(stored).__name__}")
        unknown = sorted(stored.keys() - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            by = "another pixart" if version is None else f"pixart {version}"
            raise UserError(
                f"{source} was made by {by} and says of its model what pixart {__version__} does not know: "
                f"{', '.join(unknown)}; upgrade to read it"
            )
        return cls(**{name: _fact(name, value, source) for name, value in stored.items()})


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a text")
    return value


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _number_or_none(value: Any) -> float | None:
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise ValueError("expected a number")
    return None if value is None else float(value)


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"expected {' or '.join(allowed)}")
        return str(value)

    return read


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError("expected a positive whole number")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError("expected a list")
    return list(value)


def _positions(value: Any) -> tuple[int, float] | None:
    if value is None:
        return None
    sample_size, scale = _list(value)
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not scale > 0:
        raise ValueError("expected a sample_size and a positive position scale")
    return _count(sample_size), float(scale)


_READERS: dict[str, Callable[[Any], Any]] = {
    "prediction_type": _one_of("epsilon", "v_prediction", "sample"),
    "uncond": _one_of("learned", "empty"),
    "vae": _text,
    "text_encoder": _text,
    "vae_hash": _text_or_none,
    "text_encoder_hash": _text_or_none,
    "vae_scaling_factor": _number_or_none,
    "max_tokens": _count,
    "label_names": lambda value: tuple(map(_text, _list(value))),
    "trained_sizes": lambda value: tuple((_count(h), _count(w)) for h, w in _list(value)),
    "trained_positions": _positions,
}


def _fact(name: str, value: Any, source: object) -> Any:
    try:
        return _READERS[name](value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: damaged: its card says {name} {value!r}; {error}") from error


def read_checkpoint_card(folder: Path) -> Card:
    """The card of a finished train or convert step.

    Raises:
        UserError: no checkpoint there, or a training that has not finished.
    """
    if (folder / "checkpoints").is_dir() and not (folder / "card.json").exists():
        raise UserError(f"{folder} is a training that has not finished; run it again to continue it")
    return Card.read(folder, "checkpoint")


def facts_of(card: Card, folder: Path) -> ModelFacts:
    """The facts that `card` of `folder` holds.

    Raises:
        UserError: see `ModelFacts.from_details`.
    """
    return ModelFacts.from_details(card.details, folder, card.pixart_version)


def read_facts(folder: Path) -> ModelFacts:
    """Facts of a checkpoint or pipeline of ours; those of the released weights for anything else.

    Raises:
        UserError: a card that cannot be used, or a training that has not finished.
    """
    card = read_card(folder)
    if card is not None and card["kind"] == "pipeline":
        return facts_of(Card.read(folder, "pipeline"), folder)
    if card is None and not (folder / "checkpoints").is_dir():
        return ModelFacts()
    return facts_of(read_checkpoint_card(folder), folder)
