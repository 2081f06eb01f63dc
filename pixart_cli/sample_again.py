"""`pixart sample --from IMAGE`: its options with changes, or a check that it comes out the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pixart_cli.console import show, stdout_to_stderr
from pixart_core.errors import PixartError, UserError


def options_of(image: Path, values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The options of `pixart sample` that drew `image`, with those in their place that are given now.

    Args:
        values: field and value; None means not given.
        overrides: texts of --set, which are applied later.

    Raises:
        UserError: the image does not tell how it was made, or its checkpoint is not there.
    """
    from pixart_core.artifacts.provenance import Provenance

    told = Provenance.read(image)
    given = {name: value for name, value in values.items() if value is not None}
    changed = given.keys() | {text.partition("=")[0].strip().replace("-", "_") for text in overrides}
    options = told.options()
    asked = {**_assignments(overrides), **given}
    scheduler = asked.get("scheduler", told.settings.scheduler)
    if scheduler != told.settings.scheduler:  # its own number of steps, unless one is given
        options.pop("num_inference_steps", None)
        if "lcm" in (scheduler, told.settings.scheduler):
            options.pop("guidance_scale", None)
    if "seed" in changed:
        options.pop("image_seeds")
    if changed & {"ar", "height", "width"}:
        options.pop("sizes")
    if "prompts_file" in changed:
        options.pop("prompts")
    if "checkpoint" in changed:
        options.pop("weights")
    else:
        options["checkpoint"] = told.find_checkpoint()
        if asked.get("dtype", told.settings.dtype) != told.settings.dtype:  # hashed in the type it has then
            options["weights"].pop("transformer", None)
    return options | given


def _assignments(overrides: Sequence[str]) -> dict[str, str]:
    return {name.strip(): value for name, _, value in (text.partition("=") for text in overrides)}


def check(
    image: Path, values: dict[str, Any], overrides: Sequence[str], tolerance: float, *, as_json: bool
) -> None:
    """Draw `image` again, print the difference.

    Raises:
        UserError: an option that would change the image is given; see `check_image`.
        PixartError: it differs by more than `tolerance`.
    """
    changes = [name for name, value in values.items() if value is not None]
    changes = [name for name in changes if name not in ("checkpoint", "device")] + list(overrides)
    if changes:
        raise UserError(
            f"--check draws the image as it was: leave out {', '.join(changes)} (--from alone draws it again "
            "with changes)"
        )
    from pixart_core.sampling.again import check_image

    with stdout_to_stderr():
        result = check_image(image, values["checkpoint"], values["device"], tolerance)
    show(result, as_json=as_json, as_text=_in_words)
    if not result["same"]:
        notes = f" ({'; '.join(result['notes'])})" if result["notes"] else ""
        raise PixartError(
            f"{image} comes out differently: by {result['max_difference']} of 255, {result['psnr']} dB{notes}"
        )


def _in_words(result: Mapping[str, Any]) -> str:
    verdict = "the same" if result["same"] else "different"
    psnr = f", {result['psnr']:g} dB" if result["psnr"] is not None else ""
    line = (
        f"{result['image']}: {verdict}, largest difference {result['max_difference']} of 255{psnr} "
        f"(tolerance {result['tolerance']:g})"
    )
    return "\n".join([line, f"checkpoint: {result['checkpoint']}", *(f"note: {n}" for n in result["notes"])])
