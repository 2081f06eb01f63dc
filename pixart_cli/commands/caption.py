"""`pixart caption`."""

from importlib.util import find_spec
from typing import Annotated

import typer

from pixart_cli.errors import user_errors
from pixart_cli.execute import execute
from pixart_cli.options import AsJson, BatchSize, Device, DryRun, Limit, Output, Overrides, with_examples
from pixart_cli.outputs import name_of
from pixart_core.errors import UserError
from pixart_core.recipe.caption import CaptionStep
from pixart_core.recipe.load import step_from_options


@with_examples(
    "pixart caption --data sam/",
    "pixart caption --data laion/ --with-original-caption --stats",
    "pixart caption --data 'sam/*.tar' --captioner llava-hf/llava-1.5-7b-hf --limit 1000 max_new_tokens=120",
)
def caption(
    data: Annotated[str, typer.Option(help="Folder, WebDataset tars, hf:ID[/split], or a manifest.")],
    overrides: Overrides = None,
    captioner: Annotated[
        str | None, typer.Option(help="Hub id or path of a vision-language model.", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What to ask about each image.", show_default=False)
    ] = None,
    with_original_caption: Annotated[
        bool, typer.Option("--with-original-caption", help="Put the caption at hand into the prompt.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Insist on noun statistics (Table 1).")] = False,
    limit: Limit = None,
    batch_size: BatchSize = None,
    device: Device = None,
    output: Output = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Describe images densely.

    A vision-language model answers the same question about each image (paper 2.4).
    """
    with user_errors():
        values = {
            "data": data,
            "captioner": captioner,
            "prompt": prompt,
            "with_original_caption": with_original_caption or None,
            "limit": limit,
            "batch_size": batch_size,
            "device": device,
        }
        flags = {field: f"--{field.replace('_', '-')}" for field in values}
        step = step_from_options(CaptionStep, values, overrides or [], flags)
        if stats and find_spec("textblob") is None:
            raise UserError("--stats needs TextBlob: pip install 'pixart[nouns]'")
        execute("caption", step, output, name_of(data), as_json=as_json, dry_run=dry_run)
