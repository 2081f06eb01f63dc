"""What `--dry-run` prints of train and sample steps, and the flags that say what to plan for."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from pixart_core.recipe.needs import told_of_missing

Gpu = Annotated[
    str | None,
    typer.Option(help="With --dry-run: V100, A100, H100, H200 or RTX4090 (plan.gpu).", show_default=False),
]
Mfu = Annotated[
    float | None,
    typer.Option(help="With --dry-run: share of the peak FLOP/s, 0 to 1 (plan.mfu).", show_default=False),
]
Price = Annotated[
    float | None,
    typer.Option(help="USD per GPU-hour (plan.price), for the plan and the progress.", show_default=False),
]


def plan_overrides(gpu: str | None, mfu: float | None, price: float | None) -> list[str]:
    """The flags as overrides of a recipe."""
    given = {"gpu": gpu, "mfu": mfu, "price": price}
    return [f"plan.{field}={value}" for field, value in given.items() if value is not None]


def training_plan_text(plan: Mapping[str, Any]) -> str:
    """The plan of `pixart train --dry-run` for a person."""
    known = plan["estimate"]
    lines = [f"train into {plan['output']}", *_rows(_training_rows(known))]
    return "\n".join([*lines, *_missing(plan["missing"]), *_assumed(known["assumed"])])


def chain_plan_text(plan: Mapping[str, Any]) -> str:
    """The plan of `pixart run --dry-run` for a person: all steps, then the cost of those that train."""
    lines = [f"run into {plan['output']}"]
    rows = [
        (step["name"], f"{step['command']}: {step['action']}, {step['reason']}") for step in plan["steps"]
    ]
    lines += _rows(rows)
    assumed: dict[str, None] = {}
    for step in plan["steps"]:
        known = step["estimate"]
        if "training_flops" in known:
            lines += ["", step["name"], *_rows(_training_rows(known))]
            assumed |= dict.fromkeys(known["assumed"])
        elif known:
            lines += ["", step["name"], *_rows([(key, _plain(value)) for key, value in known.items()])]
    if plan["total"]:
        lines += ["", "all train steps", *_rows(_cost_rows(plan["total"]))]
    return "\n".join([*lines, *_missing(plan["missing"]), *_assumed(list(assumed))])


def sampling_plan_text(plan: Mapping[str, Any]) -> str:
    """The plan of `pixart sample --dry-run` for a person."""
    known = plan["estimate"]
    there = f", {known['there']:,} of them there already" if known["there"] else ""
    left = f", {known['batches_left']:,} left to draw" if known["there"] else ""
    sizes = ", ".join(f"{size} ({count:,})" for size, count in known["sizes"].items())
    rows = [
        ("images", f"{known['images']:,} of {known['prompts']:,} prompts{there}"),
        ("batches", f"{known['batches']:,} of at most {plan['options']['batch_size']}{left}"),
        ("height x width", sizes),
        ("steps", f"{known['solver_steps']:,}, {known['model_calls']:,} pictures through the transformer"),
        ("FLOPs", f"{known['flops']:.4g}" + (f", {known['flops_left']:.4g} left" if known["there"] else "")),
        ("disk", f"at most {_bytes(known['disk_bytes_at_most'])}"),
    ]
    return "\n".join(
        [f"sample into {plan['output']}", *_rows(rows), *known["notes"], *_assumed(known["assumed"])]
    )


def _training_rows(known: Mapping[str, Any]) -> list[tuple[str, str]]:
    memory = known["memory_gigabytes"]
    parts = ("weights", "gradients", "optimizer", "ema", "bf16_copy", "activations")
    fits = "" if memory["total"] <= memory["of"] else "; does NOT fit"
    rows = [
        ("updates", f"{known['updates']:,} of {known['images'] // known['updates']:,} images"),
        ("model", f"{known['parameters']:,} parameters, {known['tokens']:,g} tokens a picture"),
        *_cost_rows(known),
        ("memory of a GPU", f"{memory['total']:,.1f} GB of {memory['of']:g}{fits}"),
        ("", ", ".join(f"{part} {memory[part]:,.1f}" for part in parts if memory[part])),
        ("", f"largest micro_batch_size by this count: {memory['largest_micro_batch']}"),
    ]
    if "features_gigabytes_at_most" in known:
        rows.append(("features on disk", f"at most {known['features_gigabytes_at_most']:,g} GB (int8)"))
    return rows


def _cost_rows(known: Mapping[str, Any]) -> list[tuple[str, str]]:
    epochs = f": {known['epochs']:g} epochs of {known['samples']:,}" if "epochs" in known else ""
    each = f" ({known['flops_per_image'] / 1e12:.4g} TFLOP each)" if "flops_per_image" in known else ""
    days = f"{_days(known['gpu_days'], known['gpu'] + '-')} at {known['mfu']:.1%} MFU"
    several = f": {_days(known['days'])} on {known['gpus']}" if known["gpus"] > 1 else ""
    rows = [
        ("images seen", f"{known['images']:,}{epochs}"),
        ("FLOPs", f"{known['training_flops']:.4g}{each}"),
        ("time", f"{days}{several}"),
        ("price, CO2", f"{known['usd']:,.2f} USD, {known['kg_co2']:,.1f} kg CO2 ({known['kwh']:,.1f} kWh)"),
    ]
    if "published" in known:
        told = known["published"]
        days = f"{told['gpu_days']:,g} {told['gpu']}-days"
        rows.append(("published", f"{days}, which imply {told['mfu']:.1%} MFU"))
    return rows


def _days(days: float, of: str = "") -> str:
    """`days` in a unit that suits them: `1.4 days`, `3.0 A100-hours`, `12 seconds`."""
    for unit, length in (("days", 1.0), ("hours", 24.0), ("minutes", 1440.0)):
        if days * length >= 1:
            return f"{days * length:,.1f} {of}{unit}"
    return f"{days * 86_400:,.2g} {of}seconds"


def _rows(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]


def _missing(missing: Mapping[str, str]) -> list[str]:
    return [f"missing: {told_of_missing(path, origin)}" for path, origin in missing.items()]


def _assumed(assumed: Sequence[str]) -> list[str]:
    return ["assumed", *(f"  - {line}" for line in assumed)] if assumed else []


def _bytes(count: int) -> str:
    size, unit = (count / 1e9, "GB") if count >= 1e9 else (count / 1e6, "MB")
    return f"{size:,.3g} {unit}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
