"""What a train step would cost: FLOPs, GPU-days, memory, disk, price and CO2, and what was assumed."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from pixart_core.recipe.expected import Expected
from pixart_core.recipe.gpus import GPUS
from pixart_core.recipe.model_counts import activation_bytes, parameters, training_flops
from pixart_core.recipe.planning import PlanOptions, PublishedCost
from pixart_core.recipe.training import TrainStep

DAY = 86_400
# Bytes of optimiser state for a parameter of a matrix, which almost all are; what an 8-bit block or a
# matrix has but once rounds to nothing.
OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2, "came": 4, "muon": 4}
_ROW_BYTES = 104  # ids, hashes and offsets of a sample


def training_cost(step: TrainStep, expected: Expected, plan: PlanOptions, name: str = "") -> dict[str, Any]:
    """Counts of one train step, and its cost on `plan`'s GPUs.

    Args:
        name: of the step, to find what `plan` says about it.
    """
    seen = step.max_train_steps * step.global_batch_size
    patch = expected.model.patch_size
    tokens: dict[int, float] = defaultdict(float)  # tokens of a picture and their share
    for (height, width), share in expected.latents.items():
        tokens[(height // patch) * (width // patch)] += share
    each = sum(share * _flops_per_image(step, expected, count) for count, share in tokens.items())
    total = each * seen
    interface = expected.interface
    known: dict[str, Any] = {"updates": step.max_train_steps, "images": seen}
    if expected.images:
        known |= {"samples": expected.images, "epochs": round(seen / expected.images, 3)}
    known |= {
        "parameters": parameters(
            expected.model,
            latent_channels=interface.latent_channels,
            caption_channels=interface.caption_channels,
            classes=interface.classes,
        ),
        "tokens": round(sum(count * share for count, share in tokens.items()), 1),
        "flops_per_image": round(each),
        "training_flops": round(total),
    }
    known |= hardware_cost(total, plan)
    known["memory_gigabytes"] = memory(step, expected, max(tokens), known["parameters"], plan)
    if expected.images and not expected.made:
        known["features_gigabytes_at_most"] = round(features_bytes(expected) * expected.images / 1e9, 1)
    told = plan.steps.get(name)
    if told is not None and told.published is not None:
        known["published"] = _published(total, told.published)
    return known | {"assumed": [*expected.assumed, *assumptions(step, plan)]}


def _flops_per_image(step: TrainStep, expected: Expected, tokens: int) -> float:
    """Of one picture, on average over the steps: token routing is off for the last of them."""
    model, routing = expected.model, step.token_routing
    every = training_flops(model, tokens, expected.interface)
    if routing is None:
        return every
    routed = (len(routing.blocks(model.num_layers)), routing.kept(tokens))
    share = routing.steps(step.max_train_steps) / step.max_train_steps
    return share * training_flops(model, tokens, expected.interface, routed) + (1 - share) * every


def hardware_cost(flops: float, plan: PlanOptions) -> dict[str, Any]:
    """GPU-days, days, price and CO2 of `flops` on the GPUs of `plan`."""
    gpu = GPUS[plan.gpu]
    gpu_days = flops / (gpu.flops * plan.mfu) / DAY
    price = gpu.price if plan.price is None else plan.price
    energy = gpu_days * 24 * gpu.watts / 1000 * plan.overhead
    return {
        "gpu": plan.gpu,
        "gpus": plan.gpus,
        "mfu": plan.mfu,
        "gpu_days": _rounded(gpu_days),
        "days": _rounded(gpu_days / plan.gpus),
        "usd": _rounded(gpu_days * 24 * price),
        "kwh": _rounded(energy),
        "kg_co2": _rounded(energy * plan.kg_co2_per_kwh),
    }


def implied_mfu(flops: float, gpu: str, gpu_days: float) -> float:
    """Share of the peak that `flops` in `gpu_days` mean."""
    return flops / (gpu_days * DAY * GPUS[gpu].flops)


def memory(step: TrainStep, expected: Expected, tokens: int, count: int, plan: PlanOptions) -> dict[str, Any]:
    """Gigabytes (1e9 bytes) on each GPU, every one holding the whole model; activations are estimated.

    Args:
        tokens: of the largest picture.
        count: parameters.
    """
    kept = activation_bytes(
        expected.model,
        tokens,
        expected.interface,
        precision=step.mixed_precision,
        checkpointing=step.gradient_checkpointing,
    )
    state = {
        "weights": 4 * count,
        "gradients": 4 * count,
        "optimizer": OPTIMIZER_BYTES.get(step.optimizer.kind, 8) * count,
        "ema": 0 if step.offload_ema else 4 * count,
        "bf16_copy": 2 * count if step.mixed_precision == "bf16" else 0,
    }
    activations = kept * step.micro_batch_size
    room = GPUS[plan.gpu].gigabytes * 1e9 - sum(state.values())
    parts = state | {"activations": activations, "total": sum(state.values()) + activations}
    told: dict[str, Any] = {name: round(size / 1e9, 3) for name, size in parts.items()}
    return told | {"of": GPUS[plan.gpu].gigabytes, "largest_micro_batch": max(0, int(room // kept))}


def features_bytes(expected: Expected) -> float:
    """Bytes of a sample in a feature store in int8, its caption being as long as the encoder reads.

    Class-conditional models read no captions: theirs are left out.
    """
    area = sum(height * width * share for (height, width), share in expected.latents.items())
    interface = expected.interface
    values = 2 * interface.latent_channels * area
    if expected.model.conditioning == "text":
        values += interface.text_tokens * interface.caption_channels
    return values * 33 / 32 + _ROW_BYTES  # a scale of two bytes for 64 values


def assumptions(step: TrainStep, plan: PlanOptions) -> list[str]:
    """What the numbers rest on, one sentence each."""
    gpu = GPUS[plan.gpu]
    price, source = (gpu.price, f" ({gpu.price_source})") if plan.price is None else (plan.price, "")
    precision = []
    if step.mixed_precision == "no":
        precision.append("trained in fp32, which reaches less of the 16-bit peak: lower mfu accordingly")
    elif plan.gpu == "V100":
        precision.append("a V100 has no bf16: what its fp16 tensor cores would take")
    if step.token_routing is not None:
        precision.append("token routing: FLOPs: mean of steps with and without; memory: of those without")
    return [
        *precision,
        f"{gpu.model}: {gpu.flops / 1e12:g} TFLOP/s dense in 16 bits and {gpu.watts:g} W by its datasheet",
        f"MFU {plan.mfu:.1%} is an assumption; the paper's 753 A100-days imply 18.4%",
        f"price: {price:g} USD a GPU-hour{source}; not a quotation, without idle time, features, storage",
        f"CO2: full power x {plan.overhead:g} for the site x {plan.kg_co2_per_kwh:g} kg/kWh",
        "FLOPs: forward and backward of every token, captions padded; recomputation is not counted",
        "memory: counted, not measured: whole model on each GPU, fused attention, largest bucket, no slack",
    ]


def total_cost(steps: Iterable[Mapping[str, Any]], plan: PlanOptions) -> dict[str, Any]:
    """The sum over several train steps, and what was published for them if all of it is on one GPU."""
    costs = [step for step in steps if "training_flops" in step]
    flops = sum(cost["training_flops"] for cost in costs)
    total = {"images": sum(cost["images"] for cost in costs), "training_flops": flops}
    total |= hardware_cost(flops, plan)
    published = [cost["published"] for cost in costs if "published" in cost]
    if costs and len(published) == len(costs) and len({entry["gpu"] for entry in published}) == 1:
        days = sum(entry["gpu_days"] for entry in published)
        total["published"] = _published(flops, PublishedCost(gpu=published[0]["gpu"], gpu_days=days))
    return total


def _published(flops: float, published: PublishedCost) -> dict[str, Any]:
    mfu = implied_mfu(flops, published.gpu, published.gpu_days)
    return {"gpu": published.gpu, "gpu_days": published.gpu_days, "mfu": round(mfu, 4)}


def _rounded(value: float) -> float:
    """To four digits."""
    return float(f"{value:.4g}")
