"""`pixart extract-features`."""

from pathlib import Path
from typing import Annotated

import typer

from pixart_cli.errors import user_errors
from pixart_cli.execute import execute
from pixart_cli.feature_tools import bring_in, chosen_tool, export, refuse_others, verify
from pixart_cli.options import AsJson, BatchSize, Device, DryRun, Limit, Output, Overrides, with_examples
from pixart_cli.outputs import name_of
from pixart_core.recipe.features import ExtractFeaturesStep
from pixart_core.recipe.load import step_from_options


@with_examples(
    "pixart extract-features --data sam/",
    "pixart extract-features --data sam/ --captions captions/sam resolutions=[256,512] horizontal_flip=true",
    "pixart extract-features --data sam/ --resolution 1024 aspect_buckets=paper storage=fp16",
    "pixart extract-features --data sam/ --only text text_encoder_dtype=bf16",
    "pixart extract-features --verify features/sam --repair",
    "pixart extract-features --export features/sam --to webdataset --output exports/sam",
    "pixart extract-features --import exports/sam --output features/sam",
    fields_of=ExtractFeaturesStep,
)
def extract_features(
    data: Annotated[
        str | None,
        typer.Option(help="Folder, tars, parquet, hf:ID[/split], or a manifest.", show_default=False),
    ] = None,
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
    only: Annotated[
        str | None, typer.Option(help="image or text: make this part alone.", show_default=False)
    ] = None,
    verify_store: Annotated[
        Path | None, typer.Option("--verify", help="Look for damage in this store.", show_default=False)
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="With --verify: encode the damaged shards again.")
    ] = False,
    export_store: Annotated[
        Path | None, typer.Option("--export", help="Write this store in another format.", show_default=False)
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="With --export: webdataset or hf.", show_default=False)
    ] = None,
    import_folder: Annotated[
        str | None,
        typer.Option("--import", help="Make a store of an export or other features.", show_default=False),
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = None,
    device: Device = None,
    output: Output = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Encode images and captions for training.

    The feature store holds VAE moments and text tokens. With the --output of an earlier run, only what is new
    is encoded. Several GPUs: torchrun --no-python --nproc-per-node 8 pixart extract-features ...
    """
    with user_errors():
        values = {
            "data": data,
            "captions": captions,
            "vae": vae,
            "text_encoder": text_encoder,
            "resolution": resolution,
            "only": only,
            "limit": limit,
            "batch_size": batch_size,
            "device": device,
        }
        tools = {
            "verify": None if verify_store is None else str(verify_store),
            "export": None if export_store is None else str(export_store),
            "import": import_folder,
        }
        tool = chosen_tool(data, tools, repair, to)
        others = values | {"dry_run": dry_run, "output": output, "FIELD=VALUE": overrides}
        if tool == "verify":
            moved = ("data", "captions", "vae", "text_encoder", "device")
            refuse_others(tool, others, moved if repair else ())
            assert verify_store is not None
            verify(verify_store, {name: values[name] for name in moved}, repair=repair, as_json=as_json)
        elif tool == "export":
            refuse_others(tool, others, ("output",))
            assert export_store is not None
            assert to is not None
            export(export_store, to, output, as_json=as_json)
        elif tool == "import":
            refuse_others(tool, others, ("output", "device", "dry_run", "FIELD=VALUE"))
            assert import_folder is not None
            bring_in(import_folder, overrides or [], device, output, as_json=as_json, dry_run=dry_run)
        else:
            flags = {field: f"--{field.replace('_', '-')}" for field in values}
            step = step_from_options(ExtractFeaturesStep, values, overrides or [], flags)
            execute("extract-features", step, output, name_of(data or ""), as_json=as_json, dry_run=dry_run)
