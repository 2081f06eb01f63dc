"""`pixart convert`."""

from pathlib import Path
from typing import Annotated

import typer

from pixart_cli.console import show
from pixart_cli.errors import user_errors
from pixart_cli.execute import execute
from pixart_cli.model_info import show_model_info
from pixart_cli.options import AsJson, DryRun, Output, Overrides, Seed, with_examples
from pixart_cli.outputs import name_of
from pixart_core.errors import UserError
from pixart_core.recipe.load import step_from_options
from pixart_core.recipe.schema import ConvertStep


@with_examples(
    "pixart convert --from dit.pt --to pixart --output converted/dit-xl",
    "pixart convert --from runs/stage2 --to diffusers --vae stabilityai/sd-vae-ft-ema "
    "--text-encoder google/t5-v1_1-xxl",
    "pixart convert --from PixArt-XL-2-512x512.pth --to diffusers dtype=fp16 max_shard_size=500MB",
    "pixart convert --from runs/stage3 --to official",
    "pixart convert --info PixArt-XL-2-1024-MS.pth --json",
    fields_of=ConvertStep,
)
def convert(
    source: Annotated[
        str | None, typer.Option("--from", help="File or folder to convert.", show_default=False)
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="pixart, dit, diffusers or official.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    info: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Only tell what this file or folder is (a hub id is downloaded).",
            show_default=False,
        ),
    ] = None,
    vae: Annotated[str | None, typer.Option(help="Autoencoder of a diffusers pipeline.")] = None,
    text_encoder: Annotated[str | None, typer.Option(help="Text encoder of a diffusers pipeline.")] = None,
    seed: Seed = None,
    output: Output = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Turn one model format into another.

    From DiT to PixArt it re-parameterises (paper 2.3).
    """
    with user_errors():
        if info is not None:
            if source or to or vae or text_encoder or output or overrides or dry_run:
                raise UserError("--info stands alone: it converts nothing")
            from pixart_core.conversion.info import describe

            found = describe(info)
            if as_json:
                show(found, as_json=True)
            else:
                show_model_info(found)
            return
        if source is None or to is None:
            raise UserError("give --from and --to, or --info FILE")
        values = {"source": source, "to": to, "vae": vae, "text_encoder": text_encoder, "seed": seed}
        flags = {field: f"--{field.replace('_', '-')}" for field in values} | {"source": "--from"}
        step = step_from_options(ConvertStep, values, overrides or [], flags)
        if dry_run and Path(source).exists():  # a hub id would be downloaded
            from pixart_core.conversion.prepare import prepare

            prepare(step)
        name = f"{name_of(source)}-{step.to}"
        execute("convert", step, output, name, as_json=as_json, dry_run=dry_run, long=("reparameterisation",))
