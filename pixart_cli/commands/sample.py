"""`pixart sample`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pixart_cli import sample_again
from pixart_cli.console import stdout_to_stderr
from pixart_cli.errors import user_errors
from pixart_cli.execute import execute
from pixart_cli.options import AsJson, BatchSize, Device, DryRun, Limit, Output, Seed, with_examples
from pixart_cli.outputs import name_of
from pixart_cli.planner import sampling_plan_text
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.load import step_from_options
from pixart_core.recipe.schema import SampleStep


@with_examples(
    "pixart sample --checkpoint runs/quickstart/pipeline --guidance-scale 2 "
    '"a small red circle at the left on a white background"',
    "pixart sample --checkpoint runs/quickstart/pipeline --prompts prompts.txt --seed 7",
    "pixart sample --checkpoint runs/quickstart/pipeline --prompts runs/quickstart/data_large "
    "--set sizes=[[80,112]] --set images_per_prompt=4",
    'pixart sample --checkpoint PixArt-alpha/PixArt-XL-2-512x512 "a red fox" --set offload=sequential',
    "pixart sample --from samples/pipeline/images/000000.png --check",
    "pixart sample --from samples/pipeline/images/000000.png --guidance-scale 2",
    fields_of=SampleStep,
)
def sample(
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Output of pixart train, a pipeline folder, or a hub id.", show_default=False),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw.", show_default=False)
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Text file with a prompt a line, JSONL or CSV with options for each, or a manifest (its "
            "held-out prompts)."
        ),
    ] = None,
    ar: Annotated[
        str | None,
        typer.Option(
            help="Shape as width:height, as in 9:16; drawn at the nearest size.", show_default=False
        ),
    ] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; give --width too.", show_default=False)] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; give --height too.", show_default=False)] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="dpm-solver, sa-solver, iddpm, ddim, or lcm for its weights.", show_default=False),
    ] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="Solver steps.", show_default=False)] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; 1 is none.", show_default=False)
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="IMAGE", help="Draw a PNG again as it tells, with what is given changed."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="With --from: draw it unchanged and report the difference.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(min=0, help="With --check: largest difference of a pixel, of 255.")
    ] = 1,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Any of the fields below; may be repeated."),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Processes on this machine; default: one a GPU.", show_default=False)
    ] = None,
    seed: Seed = None,
    limit: Limit = None,
    batch_size: BatchSize = None,
    device: Device = None,
    output: Output = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Generate images from prompts."""
    with user_errors():
        for text in prompt or ():
            field, is_option, _ = text.partition("=")
            if is_option and field in SampleStep.model_fields:
                raise UserError(f"{text!r} would be drawn as a prompt; an option is given as --set {text}")
        values: dict[str, Any] = {
            "checkpoint": checkpoint,
            "prompts": tuple(prompt) if prompt else None,
            "prompts_file": prompts,
            "ar": ar,
            "height": height,
            "width": width,
            "scheduler": scheduler,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "seed": seed,
            "limit": limit,
            "batch_size": batch_size,
            "device": device,
            "processes": processes,
        }
        flags = {field: f"--{field.replace('_', '-')}" for field in values}
        flags |= {"prompts": "PROMPT", "prompts_file": "--prompts"}
        if from_ is not None and check:
            sample_again.check(from_, values, set_ or [], tolerance, as_json=as_json)
            return
        if from_ is not None:
            values = sample_again.options_of(from_, values, set_ or [])
        elif check or values["checkpoint"] is None:
            raise UserError("--check needs --from IMAGE" if check else "give --checkpoint, or --from IMAGE")
        step = step_from_options(SampleStep, values, set_ or [], flags)
        if not step.prompts and step.prompts_file is None:
            raise UserError('nothing to draw: give a prompt, as in "a red fox", or --prompts FILE')
        if prompts is not None and not Path(prompts).exists():
            raise UserError(f"--prompts: no file or manifest folder {prompts}")

        def planned(folder: Path) -> dict[str, Any]:
            from pixart_cli.launching import processes_for
            from pixart_core.encoders.device import choose_device
            from pixart_core.sampling.forecast import forecast
            from pixart_core.sampling.plan import plan_sampling

            with stdout_to_stderr():
                processes_for(step, Silent())  # as the run would refuse it
                choose_device(step.device)
                return {"estimate": forecast(plan_sampling(step), step, folder)}

        execute(
            "sample",
            step,
            output,
            name_of(str(step.checkpoint)),
            as_json=as_json,
            dry_run=dry_run,
            long=("memory",),
            planned=planned,
            as_text=sampling_plan_text,
        )
