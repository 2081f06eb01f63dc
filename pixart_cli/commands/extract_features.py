"""`pixart extract-features`."""

from typing import Annotated

import typer

from pixart_cli.errors import user_errors
from pixart_cli.execute import execute
from pixart_cli.options import AsJson, BatchSize, Device, DryRun, Limit, Output, Overrides, with_examples
from pixart_cli.outputs import name_of
from pixart_core.recipe.features import ExtractFeaturesStep
from pixart_core.recipe.load import step_from_options


@with_examples(
    "pixart extract-features --data sam/",
    "pixart extract-features --data sam/ --captions captions/sam --resolution 256",
    "pixart extract-features --data sam/ --resolution 1024 aspect_buckets=paper storage=fp16",
)
def extract_features(
    data: Annotated[str, typer.Option(help="Folder, WebDataset tars, hf:ID[/split], or a manifest.")],
    overrides: Overrides = None,
    captions: Annotated[
        str | None, typer.Option(help="Output of pixart caption; default: the data's own captions.")
    ] = None,
    vae: Annotated[
        str | None, typer.Option(help="Hub id or path of the autoencoder.", show_default=False)
    ] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="Hub id or path of the text encoder.", show_default=False)
    ] = None,
    resolution: Annotated[int | None, typer.Option(help="Pixels of a side.", show_default=False)] = None,
    limit: Limit = None,
    batch_size: BatchSize = None,
    device: Device = None,
    output: Output = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Encode images and captions for training.

    The feature store holds VAE moments and text tokens.
    """
    with user_errors():
        values = {
            "data": data,
            "captions": captions,
            "vae": vae,
            "text_encoder": text_encoder,
            "resolution": resolution,
            "limit": limit,
            "batch_size": batch_size,
            "device": device,
        }
        flags = {field: f"--{field.replace('_', '-')}" for field in values}
        step = step_from_options(ExtractFeaturesStep, values, overrides or [], flags)
        execute("extract-features", step, output, name_of(data), as_json=as_json, dry_run=dry_run)
