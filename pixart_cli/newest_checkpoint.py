"""`pixart evaluate --bench compbench` without samples: those of the newest checkpoint."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pixart_cli import runners
from pixart_cli.console import RichProgress, show, stdout_to_stderr
from pixart_cli.outputs import ARTIFACTS
from pixart_core.errors import UserError
from pixart_core.recipe.load import step_from_options
from pixart_core.recipe.schema import EvaluateStep


def sample_newest(
    benches: Sequence[str],
    values: Mapping[str, Any],
    overrides: Sequence[str],
    *,
    as_json: bool,
    dry_run: bool,
) -> tuple[str, str, int] | None:
    """Say what is here and what is missing, and draw what the benchmark needs.

    Args:
        values, overrides: the other options of `pixart evaluate`.

    Returns:
        (name, folder, images without the limit) of the samples; None if this was a dry run.

    Raises:
        UserError: no benchmark was asked for that has prompts, or one that needs its own; there is no
            checkpoint, nothing can be scored, or another benchmark lacks what it needs.
    """
    if "compbench" not in benches or "shapes" in benches:
        raise UserError(
            "--samples is missing: what `pixart sample` made; only --bench compbench, which has prompts of "
            "its own (bench shapes cannot score them), finds and samples a checkpoint by itself"
        )
    flags = {field: f"--{field}" for field in values}
    step = step_from_options(
        EvaluateStep, dict(values) | {"samples": {"newest": "-"}}, list(overrides), flags
    )
    from pixart_core.evaluation.compbench.plan import draw_planned, plan_compbench
    from pixart_core.evaluation.networks import check_networks

    plan = plan_compbench(
        step.compbench,
        Path(ARTIFACTS["train"].folder),
        Path(ARTIFACTS["sample"].folder),
        limit=step.limit,
        seed=step.seed,
        device=step.device,
    )
    if dry_run:
        show(plan.as_json(), as_json=as_json, as_text=lambda _: "\n".join(plan.lines()))
        return None
    check_networks(step)
    for line in plan.lines():
        print(f"pixart: {line}", file=sys.stderr)
    with stdout_to_stderr(), RichProgress() as progress:
        folder = draw_planned(plan, progress, runners.RUNNERS["sample"])
    return plan.name, str(folder), plan.whole
