"""`pixart evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pixart_cli.errors import user_errors
from pixart_cli.execute import execute
from pixart_cli.options import AsJson, DryRun, Output, Overrides, Seed, with_examples
from pixart_cli.outputs import name_of
from pixart_cli.scores import evaluation_in_words
from pixart_core.errors import UserError
from pixart_core.recipe.load import step_from_options
from pixart_core.recipe.schema import EvaluateStep


@with_examples(
    "pixart evaluate --bench shapes --samples samples/quickstart",
    "pixart evaluate --bench fid clip compbench --samples new=samples/b --samples old=samples/a "
    "--reference coco/val2014 inception=pt_inception-2015-12-05-6726825d.pth",
    "pixart evaluate --bench compbench compbench.blip=model_base_vqa_capfilt_large.pth",
    "pixart evaluate --curve 1.5,3,4.5 --checkpoint runs/quickstart/pipeline --prompts prompts.txt "
    "--bench fid clip --reference photos/ inception=pt_inception-2015-12-05-6726825d.pth",
    "pixart evaluate --samples samples/quickstart runs.stage2=runs/quickstart/stage2 bootstrap=2000",
    fields_of=EvaluateStep,
)
def evaluate(
    samples: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DIR",
            help="Output of pixart sample; may be repeated. With bench compbench: default, the newest "
            "checkpoint below runs/ is sampled.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    bench: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BENCH...",
            help="One or several of shapes, clip, compbench, fid, cmmd, fd-dinov2, frechet.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Real images, or statistics (.npz), for fid, cmmd, fd-dinov2 and frechet."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Score the first so many of each set; marks results partial.", show_default=False),
    ] = None,
    curve: Annotated[
        str | None,
        typer.Option(
            metavar="SCALES",
            help="Instead of --samples: draw --prompts with --checkpoint at guidance scales such as 1.5,3, "
            "with the same noise, and plot distance against CLIP score.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="With --curve: what draws.", show_default=False)
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="With --curve: text file or manifest.", show_default=False)
    ] = None,
    seed: Seed = None,
    output: Output = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Score generated images and write a report."""
    with user_errors():
        benches, given = _benches(bench or [], overrides or [])
        values: dict[str, Any] = {
            "bench": benches or None,
            "reference": reference,
            "limit": limit,
            "seed": seed,
        }
        if curve is not None:
            from pixart_cli.guidance_samples import sample_scales

            if samples:
                raise UserError("--curve draws samples of its own: leave --samples out")
            drawn = sample_scales(
                curve,
                checkpoint,
                prompts,
                limit=limit,
                seed=seed,
                as_json=as_json,
                dry_run=dry_run,
                check=lambda: _check(values, given),
            )
            if drawn is None:
                return
            samples = [f"{name}={folder}" for name, (folder, _) in drawn.items()]
            values |= {"limit": None, "whole": {name: whole for name, (_, whole) in drawn.items()}}
        elif checkpoint is not None or prompts is not None:
            raise UserError(
                "--checkpoint and --prompts belong to --curve; score finished samples by --samples"
            )
        if not samples:
            from pixart_cli.newest_checkpoint import sample_newest

            found = sample_newest(benches, values, given, as_json=as_json, dry_run=dry_run)
            if found is None:
                return
            name, folder, whole = found
            samples = [f"{name}={folder}"]
            values |= {"limit": None, "whole": {name: whole}}
        named = _named(samples)
        values = {"samples": named} | values
        flags = {field: f"--{field}" for field in values}
        step = step_from_options(EvaluateStep, values, given, flags)
        name = f"{name_of(checkpoint)}-curve" if curve and checkpoint else "-".join(named)
        execute(
            "evaluate",
            step,
            output,
            name,
            as_json=as_json,
            dry_run=dry_run,
            planned=_planned(step) if dry_run else None,
            result_as_text=evaluation_in_words,
        )


def _planned(step: EvaluateStep) -> dict[str, Any]:
    from pixart_core.evaluation.evaluate import plan_evaluation

    return plan_evaluation(step)


def _check(values: dict[str, Any], given: list[str]) -> None:
    """Refuse options that are wrong, and weights that are missing, before anything is drawn.

    Raises:
        UserError: all of it.
    """
    from pixart_core.evaluation.networks import check_networks

    flags = {field: f"--{field}" for field in values}
    check_networks(step_from_options(EvaluateStep, values | {"samples": {"later": "-"}}, given, flags))


def _benches(flags: list[str], words: list[str]) -> tuple[list[str], list[str]]:
    """(benches, overrides): after `--bench a b c=d` the parser takes b for an argument, as it does c=d."""
    more = [word for word in words if flags and "=" not in word]
    benches = [part for entry in [*flags, *more] for part in entry.split(",") if part]
    return list(dict.fromkeys(benches)), [word for word in words if word not in more]


def _named(samples: list[str]) -> dict[str, str]:
    """{name: folder} of `NAME=DIR` or `DIR` (named after its last part)."""
    named: dict[str, str] = {}
    for entry in samples:
        name, equals, folder = entry.partition("=")
        if not equals or Path(entry).exists():
            name, folder = name_of(entry), entry
        if name in named:
            raise UserError(f"--samples: two sets are called {name}; name them: NAME=DIR")
        named[name] = folder
    return named
