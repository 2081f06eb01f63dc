"""`pixart evaluate --curve`: the same prompts and noise drawn at several guidance scales."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pixart_cli import runners
from pixart_cli.console import RichProgress, show, stdout_to_stderr
from pixart_cli.outputs import check_output, default_output, name_of
from pixart_core.errors import UserError
from pixart_core.recipe.load import step_from_options
from pixart_core.recipe.schema import SampleStep


def sample_scales(
    curve: str,
    checkpoint: str | None,
    prompts: str | None,
    *,
    limit: int | None,
    seed: int | None,
    as_json: bool,
    dry_run: bool,
    check: Callable[[], None],
) -> dict[str, tuple[str, int]] | None:
    """Draw a sample set for each scale of `curve` (`1.5,3,4.5`); what is drawn already stays.

    Args:
        check: refuses what the evaluation lacks, before anything is drawn.

    Returns:
        {name: (folder, samples that it would hold without `limit`)}; None if this was a dry run.

    Raises:
        UserError: no checkpoint, no prompts, or scales that are no numbers; and as `pixart sample`.
    """
    scales = _scales(curve)
    if checkpoint is None or prompts is None:
        raise UserError("--curve draws at each guidance scale: give --checkpoint and --prompts as well")
    if not Path(prompts).exists():
        raise UserError(f"--prompts: no file or manifest folder {prompts}")
    planned = []
    for scale in scales:
        values = {"checkpoint": checkpoint, "prompts_file": prompts, "guidance_scale": scale}
        values |= {"limit": limit, "seed": seed}
        step = step_from_options(SampleStep, values, [], {"guidance_scale": "--curve", "limit": "--limit"})
        output = default_output("sample", f"{name_of(checkpoint)}-guidance-{scale:g}", step)
        check_output("sample", output, step)
        planned.append((scale, step, output))
    if dry_run:
        plan: dict[str, Any] = {f"guidance {scale:g}": str(output) for scale, _, output in planned}
        show({"command": "evaluate", "samples": plan}, as_json=as_json)
        return None
    check()
    with stdout_to_stderr(), RichProgress() as progress:
        for scale, step, output in planned:
            print(f"pixart: guidance {scale:g}: samples go to {output}", file=sys.stderr)
            runners.RUNNERS["sample"](step, output, progress)
    return {f"guidance {scale:g}": (str(output), _whole(step)) for scale, step, output in planned}


class _NoSizes:
    """For counting: whatever size is asked for."""

    def of_aspect(self, ar: str) -> tuple[int, int]:
        return 1, 1

    def of_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width


def _whole(step: SampleStep) -> int:
    """How many samples all prompts have."""
    from pixart_core.sampling.requests import read_requests

    return len(read_requests(step.model_copy(update={"limit": None}), (1, 1), _NoSizes()))


def _scales(curve: str) -> Sequence[float]:
    try:
        scales = [float(part) for part in curve.split(",") if part.strip()]
    except ValueError as error:
        raise UserError(f"--curve: expected guidance scales as 1.5,3,4.5, got {curve!r}") from error
    if len(set(scales)) < 2:
        raise UserError(f"--curve: a curve needs two different guidance scales, got {curve!r}")
    return sorted(set(scales))
