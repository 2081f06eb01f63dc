"""`pixart convert --info` for a person: what a model is, as two small tables."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pixart_cli.console import is_first_process


def show_model_info(info: Mapping[str, Any]) -> None:
    """Print what `pixart_core.conversion.info.describe` found on stdout."""
    if not is_first_process():
        return
    console = Console(file=sys.stdout, highlight=False)
    with console.capture() as capture:
        _print(console, info)
    # Tables fill their last column with spaces.
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _print(console: Console, info: Mapping[str, Any]) -> None:
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, value in _rows(info):
        facts.add_row(label, Text(value))
    console.print(facts)
    if isinstance(info.get("parameters"), Mapping):
        console.print()
        console.print(_parameters(info["parameters"]))
    for label, style in (("notes", "dim"), ("problems", "red")):
        for line in info.get(label) or ():
            console.print(Text(f"{label.removesuffix('s')}: {line}", style=style))


def _rows(info: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "source", str(info["source"])
    own = info.get("format") == "pixart"
    yield (
        "format",
        f"pixart {info['container']}" if own else _joined(info.get("format"), info.get("container")),
    )
    if "bytes" in info:
        files = f" in {info['files']} files" if info["files"] > 1 else ""
        yield "size", f"{_size(info['bytes'])}{files}, {info['dtype']}"
    if info.get("model"):
        yield "model", _joined(info["model"], info.get("stage"), info.get("modulation"))
    if "copied_blocks" in info:
        yield "copied blocks", str(info["copied_blocks"])
    if "layers_changed" in info:
        yield "changes", f"{info['layers_changed']} layers, rank {', '.join(map(str, info['ranks']))}"
    if "layers" in info:
        yield from _shape(info)
    if "layers" in info:
        yield "weights used", _weights_used(info)
    if info.get("trained"):
        yield "trained", ", ".join(f"{name} {value:,}" for name, value in info["trained"].items())
    if info.get("missing"):
        yield "missing", ", ".join(info["missing"])
    if info.get("unknown"):
        yield "not told", f"{', '.join(info['unknown'])} (give these to convert it)"
    if "parameters_total" in info:
        yield "parameters", f"{info['parameters_total']:,}"


def _weights_used(info: Mapping[str, Any]) -> str:
    averaged = info["weights_used"] == "ema"
    if info.get("ema"):
        return f"{'averaged (EMA)' if averaged else 'plain'}; the file has both"
    return "averaged (EMA)" if averaged else "as stored; no averaged ones (EMA) beside them"


def _shape(info: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "resolution", _resolution(info)
    heads = f"{info['heads']} heads" if info["heads"] else "heads not told"
    patch = f"patch {info['patch_size']}"
    yield "shape", f"{info['layers']} layers, width {info['width']}, {heads}, {patch}"
    variance = "with learned variance" if info["learned_variance"] else "without variance"
    yield "latents", f"{info['latent_channels']} channels, {variance}"
    yield "predicts", str(info["prediction_type"])
    yield "condition", _condition(info)
    assumed = "" if info["encoders_stored"] else " (not in the file: that of the released weights)"
    yield "VAE", str(info["vae"]) + assumed
    if info["text_encoder"]:
        yield "text encoder", str(info["text_encoder"]) + assumed


def _resolution(info: Mapping[str, Any]) -> str:
    if info["resolution"] is None:
        return "not told by the file"
    by = f"told by the {info['resolution_told_by']}"
    latent = f"{info['vae_factor']} px a latent{' assumed' if info['vae_factor_assumed'] else ''}"
    parts = [f"{info['resolution']} px ({by}, {latent})"]
    if info["sample_size"]:
        parts.append(f"sample_size {info['sample_size']}, position scale {info['interpolation_scale']:g}")
    if info["micro_conditions"]:
        parts.append("micro-conditions")
    return ", ".join(parts)


def _condition(info: Mapping[str, Any]) -> str:
    if info["caption_channels"] is None:
        return str(info["conditioning"])
    learned = "learned" if info["uncond"] == "learned" else "the encoded empty caption"
    tokens = f"captions of {info['max_tokens']} tokens, width {info['caption_channels']}"
    return f"{tokens}; unconditional: {learned}"


def _parameters(parameters: Mapping[str, int]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("part", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    total = sum(parameters.values()) or 1
    for part, count in parameters.items():
        table.add_row(part.replace("_", " "), f"{count:,}", f"{100 * count / total:.1f} %")
    return table


def _joined(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part)


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"
