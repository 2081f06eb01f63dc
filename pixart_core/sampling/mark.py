"""The mark of a sample set that is being drawn: which run began it."""

import contextlib
from pathlib import Path

from pixart_core.artifacts.card import Card, read_card, what_differs
from pixart_core.artifacts.publish import write_text
from pixart_core.artifacts.samples import IMAGES
from pixart_core.errors import UserError

STARTED = "sampling.json"


def refuse_others(output: Path, card: Card) -> None:
    """Raises:
    UserError: `output` holds samples of another checkpoint or of other options, or foreign images."""
    begun = _begun(output)
    if begun is None:
        images = output / IMAGES
        if images.exists() and not (images.is_dir() and not any(images.iterdir())):
            raise UserError(f"{images} is not empty and not of this run; choose another output")
    elif begun != _name(card):
        finished = read_card(output)
        how = what_differs(finished, card) if finished else ""
        raise UserError(
            f"{output} holds samples of another checkpoint or with other options{how}; choose another output"
        )


def begin(output: Path, card: Card) -> None:
    """Remember what is being drawn, and clear away what a killed run was writing just then.

    Raises:
        UserError: see `refuse_others`.
        PixartError: the disk is full.
    """
    refuse_others(output, card)
    for folder in (output, output / IMAGES):
        for partial in folder.glob(".*.partial"):
            with contextlib.suppress(OSError):
                partial.unlink()
    if _begun(output) is None:
        write_text(output / STARTED, _name(card) + "\n")


def _name(card: Card) -> str:
    """Fingerprint and, of a checkpoint on the hub, the commit: the id alone may mean another one tomorrow."""
    return " ".join([card.fingerprint, *filter(None, [card.details.get("checkpoint_hub")])])


def _begun(output: Path) -> str | None:
    """Fingerprint of the run that began `output`; None without a marker that can be read."""
    try:
        return (output / STARTED).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
