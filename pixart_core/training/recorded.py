"""The recipe that an output folder was begun with, and whether another one may continue it."""

import json
from pathlib import Path

import yaml

from pixart_core.artifacts.card import card_for
from pixart_core.artifacts.publish import write_json, write_text
from pixart_core.errors import UserError
from pixart_core.recipe.training import TrainStep
from pixart_core.training.state import saved_states

RECIPE = "recipe.yaml"


def continue_or_refuse(step: TrainStep, output: Path, states: Path) -> None:
    """Store the resolved recipe, or compare with the one that is there.

    Raises:
        UserError: `output` was started with other options; the first differences are named.
    """
    options = card_for("checkpoint", step, {})
    current = {"options": dict(options.options), "inputs": dict(options.inputs)}
    marker = output / ".run.json"
    # Before the first state nothing can be lost: a batch that was too large for the memory may change.
    if marker.exists() and saved_states(states):
        stored = json.loads(marker.read_text())
        changed = [
            f"{key}: {stored[part].get(key)!r} before, {current[part].get(key)!r} now"
            for part in ("options", "inputs")
            for key in sorted(stored[part].keys() | current[part].keys())
            # JSON turns tuples into lists; compare what is stored.
            if stored[part].get(key) != json.loads(json.dumps(current[part].get(key)))
        ]
        if changed:
            raise UserError(
                f"{output} holds a run with other settings ({'; '.join(changed[:3])}); "
                "choose another output or restore them"
            )
        return
    write_text(output / RECIPE, yaml.safe_dump(step.model_dump(mode="json"), sort_keys=False))
    write_json(marker, current)
