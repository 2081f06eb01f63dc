"""`pixart sample --from IMAGE --check`: draw an image once more from what it tells, and compare."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from pixart_core import __version__
from pixart_core.artifacts.provenance import HASHES, Provenance, Settings
from pixart_core.encoders.device import choose_device
from pixart_core.errors import UserError
from pixart_core.recipe.sample import SampleStep
from pixart_core.sampling.draw import draw
from pixart_core.sampling.loading import prepare_model
from pixart_core.sampling.model import SamplingModel
from pixart_core.sampling.outline import read_outline
from pixart_core.sampling.requests import read_requests
from pixart_core.sampling.settings import hashes_of, here, refuse_other_weights


def check_image(path: Path, checkpoint: str | None, device: str | None, tolerance: float) -> dict[str, Any]:
    """Draw the image at `path` again and measure the difference.

    Args:
        checkpoint: None for the recorded one.
        tolerance: largest difference of a pixel's channel, of 255, that still counts as the same. 1 is what a
            batch of another size makes by rounding.

    Returns:
        `same`, `max_difference` (of 255), `psnr` (dB; None when there is no difference), and `notes` on what
        is different here from where it was made.

    Raises:
        UserError: the image does not tell how it was made, or the checkpoint has other weights.
    """
    told = Provenance.read(path)
    source = checkpoint or told.find_checkpoint()
    if told.settings.scheduler is None or told.record.num_inference_steps is None:
        raise UserError(f"{path} does not tell its scheduler and steps, so it cannot be made again")
    try:
        step = SampleStep.model_validate(
            told.options() | {"checkpoint": source, "device": device, "any_size": True}
        )
    except ValidationError as error:
        reason = error.errors()[0]
        where = ".".join(map(str, reason["loc"]))
        raise UserError(f"{path}: its metadata is damaged ({where}: {reason['msg']})") from error
    outline = read_outline(source)
    (record,) = read_requests(step, outline.default_size)
    outline.check_size(record.height, record.width)
    model = prepare_model(outline, step, [[record]], [[record]], choose_device(device))
    refuse_other_weights(source, told.settings.weights.items(), hashes_of(model), f"{path} was made with")

    with Image.open(path) as image:
        before = np.asarray(image.convert("RGB")).astype(np.int64)
    if before.shape[:2] != (record.height, record.width):
        raise UserError(
            f"{path} has {before.shape[0]}x{before.shape[1]} pixels, its metadata says "
            f"{record.height}x{record.width}: it was changed since"
        )
    again = np.asarray(draw(model, step, [record])[0]).astype(np.int64)
    largest = int(np.abs(before - again).max())
    error_power = float(np.square(before - again).mean())
    return {
        "image": str(path),
        "checkpoint": source,
        "same": largest <= tolerance,
        "max_difference": largest,
        "psnr": round(10 * math.log10(255**2 / error_power), 2) if error_power else None,
        "tolerance": tolerance,
        "notes": _differences(told.settings, model),
    }


def _differences(settings: Settings, model: SamplingModel) -> list[str]:
    """What is not as it was where the image was made."""
    notes = [
        f"made with {name.removesuffix('_version')} {getattr(settings, name)}, this is {value}"
        for name, value in ({"pixart_version": __version__} | here(model.device)).items()
        if getattr(settings, name) not in (None, value)
    ]
    if silent := [part for part in HASHES if part not in settings.weights]:
        notes.append(f"the image does not tell the hash of {', '.join(silent)}, so that was not compared")
    return notes
