"""`pixart caption`."""

from typing import Annotated

import typer

from pixart_cli.caption_statistics import count_captions
from pixart_cli.errors import user_errors
from pixart_cli.execute import execute
from pixart_cli.options import AsJson, BatchSize, Device, DryRun, Limit, Output, Overrides, with_examples
from pixart_cli.outputs import name_of
from pixart_core.errors import UserError
from pixart_core.recipe.caption import CaptionStep
from pixart_core.recipe.load import step_from_options


@with_examples(
    "pixart caption --data sam/",
    "pixart caption --data laion/ --with-original-caption batch_size=32 quantization=4bit",
    "pixart caption --data sam/ --api-base http://localhost:8000/v1 --captioner Qwen/Qwen2.5-VL-7B-Instruct",
    "pixart caption --data sam/ retry_flagged=2 exclude_flagged=[empty,refusal]",
    "torchrun --nproc_per_node 8 --no-python pixart caption --data sam/",
    "pixart caption --stats --data captions/sam",
    "pixart caption --stats --data new.jsonl --before laion.parquet before_column=TEXT num_proc=8",
    fields_of=CaptionStep,
)
def caption(
    data: Annotated[str, typer.Option(help="Folder, tars, parquet, hf:ID[/split], or a manifest.")],
    overrides: Overrides = None,
    captioner: Annotated[
        str | None, typer.Option(help="Hub id or path of a vision-language model.", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What to ask about each image.", show_default=False)
    ] = None,
    api_base: Annotated[
        str | None,
        typer.Option(help="Ask this OpenAI-compatible server; --captioner is its model.", show_default=False),
    ] = None,
    with_original_caption: Annotated[
        bool, typer.Option("--with-original-caption", help="Put the caption at hand into the prompt.")
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Count the nouns and tokens of captions that are there (Table 1).")
    ] = False,
    before: Annotated[
        str | None, typer.Option(help="With --stats: captions to compare with.", show_default=False)
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = None,
    device: Device = None,
    output: Output = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Describe images densely.

    A vision-language model answers the same question about each image (paper 2.4). Run again after an
    interruption, it goes on where it was.
    """
    with user_errors():
        captioning = {
            "captioner": captioner,
            "prompt": prompt,
            "api_base": api_base,
            "with_original_caption": with_original_caption,
            "batch_size": batch_size,
            "device": device,
        }
        if stats:
            count_captions(
                {"data": data, "before": before, "limit": limit}, overrides or [], output,
                captioning=captioning, as_json=as_json, dry_run=dry_run,
            )  # fmt: skip
            return
        if before is not None:
            raise UserError("--before compares captions: give --stats as well")
        values = {
            "data": data,
            "captioner": captioner,
            "prompt": prompt,
            "api_base": api_base,
            "with_original_caption": with_original_caption or None,
            "limit": limit,
            "batch_size": batch_size,
            "device": device,
        }
        flags = {field: f"--{field.replace('_', '-')}" for field in values}
        step = step_from_options(CaptionStep, values, overrides or [], flags)
        execute("caption", step, output, name_of(data), as_json=as_json, dry_run=dry_run)
