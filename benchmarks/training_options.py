"""Optimisers and token routing on the CPU: processor time of an update, and of a step with routing or not.

    OMP_NUM_THREADS=1 python benchmarks/training_options.py --json benchmarks/results/training_options.json

12 blocks of width 384, 256 tokens. Versions take turns in one process, in alternating order; ratios are
medians of pairs, and a version runs twice as a control: a row whose control leaves 0.97 to 1.03 is void.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine, write_result

from pixart_core.diffusion.schedule import NoiseSchedule
from pixart_core.models.build import Transformer, build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.recipe.model_counts import Interface, training_flops
from pixart_core.recipe.optimizers import AdamW8bitOptions, AdamWOptions, CameOptions, MuonOptions
from pixart_core.recipe.token_routing import TokenRouting
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.training.batches import TrainingBatch
from pixart_core.training.memory import keep_freed_memory
from pixart_core.training.optimizer import build_optimizers
from pixart_core.training.routing import draw_kept_tokens
from pixart_core.training.step import batch_loss

SHAPE = {"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 12}
BATCH, TEXT_TOKENS, CAPTION, ROUNDS = 4, 77, 768, 9


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    machine = describe_machine()
    results = [*optimizers(), routing(None), routing(torch.bfloat16)]
    for row in results:
        print(row)
    if arguments.json:
        write_result(arguments.json, "benchmarks/training_options.py", results, machine)


def build() -> Transformer:
    """The model, the same each time."""
    torch.manual_seed(0)
    return build_transformer(TransformerConfig(**SHAPE, caption_channels=CAPTION))


def make_step(**options: Any) -> TrainStep:
    """A recipe of `options`; what is trained on does not matter here."""
    given = {"features": "x", "model": ModelOptions(), "global_batch_size": BATCH, "micro_batch_size": BATCH}
    return TrainStep.model_validate(given | {"max_train_steps": 100} | options)


def taking_turns(versions: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Processor seconds of each version in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    for run in versions.values():
        run()
    for number in range(ROUNDS):
        for name in list(versions)[:: 1 if number % 2 else -1]:
            begin = time.process_time()
            versions[name]()
            seconds[name].append(time.process_time() - begin)
    return seconds


def ratio(one: list[float], other: list[float]) -> float:
    """Median of pairs."""
    return round(statistics.median(a / b for a, b in zip(one, other, strict=True)), 3)


def optimizers() -> list[dict[str, Any]]:
    """A row for each optimiser: an update of all parameters."""
    kinds = [AdamWOptions(), AdamW8bitOptions(), CameOptions(), MuonOptions()]
    built = {}
    for name, options in [("control", kinds[0]), *((kind.kind, kind) for kind in kinds)]:
        model = build()
        for parameter in model.parameters():
            parameter.grad = 1e-3 * torch.randn_like(parameter)
        built[name] = build_optimizers(make_step(optimizer=options), model).step
    count = sum(parameter.numel() for parameter in model.parameters())
    seconds = taking_turns(built)
    return [
        {
            "optimizer": kind.kind,
            "parameters": count,
            "nanoseconds_a_parameter": round(1e9 * statistics.median(seconds[kind.kind]) / count, 2),
            "of_adamw": ratio(seconds[kind.kind], seconds["adamw"]),
            "control": ratio(seconds["control"], seconds["adamw"]),
        }
        for kind in kinds
    ]


def routing(autocast: torch.dtype | None) -> dict[str, Any]:
    """Forward and backward of a batch with all tokens, and with half of them past blocks 2 to 9."""
    model, options = build(), TokenRouting()
    model.routed_blocks = options.blocks(SHAPE["num_layers"])
    loss = partial(batch_loss, schedule=NoiseSchedule(), prediction_type="epsilon", autocast=autocast)
    latents, text = torch.randn(BATCH, 4, 32, 32), torch.randn(BATCH, TEXT_TOKENS, CAPTION)
    plain = TrainingBatch(
        latents=latents,
        noise=torch.randn_like(latents),
        timesteps=torch.randint(1000, (BATCH,)),
        text=text,
        mask=torch.ones(BATCH, TEXT_TOKENS, dtype=torch.bool),
        labels=None,
        resolution=torch.zeros(BATCH, 2),
        aspect_ratio=torch.ones(BATCH, 1),
        ids=[],
    )
    kept = draw_kept_tokens(make_step(token_routing=options), 0, range(BATCH), 256)
    assert kept is not None
    routed = dataclasses.replace(plain, kept_tokens=kept)

    def run(batch: TrainingBatch) -> None:
        model.zero_grad()
        loss(model, batch).total.mean().backward()

    seconds = taking_turns(
        {"plain": partial(run, plain), "routed": partial(run, routed), "control": partial(run, plain)}
    )
    shape, interface = ModelOptions(**SHAPE), Interface(4, CAPTION, TEXT_TOKENS)
    flops = [
        training_flops(shape, 256, interface, (blocks, kept.shape[1]))
        for blocks in (0, len(model.routed_blocks))
    ]
    return {
        "token_routing": options.model_dump(),
        "autocast": "no" if autocast is None else str(autocast),
        "seconds": round(statistics.median(seconds["plain"]), 3),
        "times_faster": ratio(seconds["plain"], seconds["routed"]),
        "times_fewer_flops": round(flops[0] / flops[1], 3),
        "control": ratio(seconds["control"], seconds["plain"]),
    }


if __name__ == "__main__":
    main()
