"""`pixart convert`: DiT to PixArt, and one layout to another."""

from pathlib import Path
from typing import Any

from pixart_core.artifacts.card import made_by, read_card
from pixart_core.artifacts.publish import restore_replaced, staged_folder
from pixart_core.conversion.prepare import prepare
from pixart_core.conversion.targets import write_target
from pixart_core.errors import UserError
from pixart_core.progress import Progress
from pixart_core.recipe.schema import ConvertStep


def run_conversion(step: ConvertStep, output: Path, progress: Progress) -> dict[str, Any]:
    """Convert `step.source` into the folder `output`, which appears whole or not at all.

    Returns:
        "output", "to", "model", "format" (of the source), "parameters", "notes", and for a DiT that became
        a PixArt "reparameterisation": rows of `measure_agreement`.

    Raises:
        UserError: a source that cannot be read, a target that cannot hold it, options that do not apply, or
            an `output` that holds something else.
    """
    refuse_foreign(step, output)
    loaded = prepare(step)
    progress.say(f"{step.source}: {loaded.report.format}, {loaded.report.dtype}")
    with staged_folder(output) as folder:
        made = write_target(step, loaded, folder, progress)
    made["notes"] = [*loaded.report.notes, *made["notes"]]
    for note in made["notes"]:
        progress.say(note)
    return {"output": str(output), "to": step.to, "format": loaded.report.format} | made


def refuse_foreign(step: ConvertStep, output: Path) -> None:
    """What a conversion replaces is whole folders: only its own earlier result may be one.

    Raises:
        UserError: `output` holds anything else, or the source.
    """
    restore_replaced(output)
    if output.exists() and Path(str(step.source)).resolve().is_relative_to(output.resolve()):
        raise UserError(f"the result would replace its own source {step.source}; choose another output")
    if not output.is_dir() or not any(output.iterdir()):
        return
    card = read_card(output)
    if card is None or not made_by(card, step):
        raise UserError(f"{output} is not empty and not the result of this conversion; choose another output")
