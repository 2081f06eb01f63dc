"""PixArt XL/2 on the CPU: parameters, peak memory and time of a forward pass and of a training step's passes.

    python benchmarks/model_xl.py --json benchmarks/results/model_xl.json

256 px, 120 text tokens, random weights. Each row is a process of its own. Peak memory does not
depend on the load of the machine, seconds do.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from machine import describe_machine, write_result
from process_memory import run_watched

DTYPES = ("float32", "bfloat16")
CHECKPOINTING = ("none", "selective", "full")
LATENT_SIDE, TEXT_TOKENS, BATCH = 32, 120, 8


def main() -> None:
    """Run every case, or (--case) be one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument(
        "--case", nargs=4, metavar=("PASSES", "DTYPE", "CHECKPOINTING", "BATCH"), help="internal"
    )
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(*arguments.case[:3], batch=int(arguments.case[3]))))
        return
    machine = describe_machine()
    both = "forward and backward"
    cases = [("build", dtype, "none", 1) for dtype in DTYPES]
    cases += [("forward", dtype, "none", 1) for dtype in DTYPES]
    cases += [(both, dtype, mode, 1) for dtype in DTYPES for mode in CHECKPOINTING]
    # With a batch, what is stored for the backward pass outweighs the weights.
    cases += [(both, "bfloat16", mode, BATCH) for mode in CHECKPOINTING]
    results = []
    for case in cases:
        results.append(measure(*case))
        print(format_result(results[-1]), flush=True)
    if arguments.json:
        write_result(arguments.json, "benchmarks/model_xl.py", results, machine)


def measure(passes: str, dtype: str, checkpointing: str, batch: int) -> dict[str, Any]:
    """A row: what the case says of itself and its memory, seen from outside."""
    usage = run_watched([sys.executable, __file__, "--case", passes, dtype, checkpointing, str(batch)])
    return {
        "passes": passes,
        "dtype": dtype,
        "gradient_checkpointing": checkpointing,
        "batch": batch,
        **json.loads(usage.output),
        "peak_rss_bytes": usage.peak_rss,
        "peak_anonymous_bytes": usage.peak_anonymous,
    }


def run_case(passes: str, dtype: str, checkpointing: Any, batch: int) -> dict[str, Any]:
    """Build the model in `dtype` and run it once; the first run is all that peak memory needs."""
    import torch

    from pixart_core.models.build import build_transformer
    from pixart_core.models.config import TransformerConfig

    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    config = TransformerConfig(sample_size=LATENT_SIDE)
    with torch.device("meta"):
        model = build_transformer(config)
    weights = {n: torch.empty(t.shape, dtype=kind).normal_(std=0.02) for n, t in model.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    del weights
    model.requires_grad_(True).gradient_checkpointing = checkpointing
    told = {"parameters": sum(p.numel() for p in model.parameters()), "seconds": None, "cpu_seconds": None}
    if passes == "build":
        return told
    latents = torch.randn(batch, 4, LATENT_SIDE, LATENT_SIDE, dtype=kind)
    text = torch.randn(batch, TEXT_TOKENS, config.caption_channels, dtype=kind)
    begin = time.perf_counter(), time.process_time()
    with torch.set_grad_enabled(passes != "forward"):
        output = model(latents, torch.full((batch,), 500), text)
        if passes != "forward":
            output.float().square().mean().backward()
    assert output.isfinite().all()
    seconds, cpu_seconds = time.perf_counter() - begin[0], time.process_time() - begin[1]
    return told | {"seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2)}


def format_result(result: dict[str, Any]) -> str:
    """A line for a person."""
    name = f"{result['passes']}, {result['dtype']}, batch {result['batch']}"
    name += f", checkpointing {result['gradient_checkpointing']}"
    peak, anonymous = result["peak_rss_bytes"] / 1e9, result["peak_anonymous_bytes"] / 1e9
    seconds = "" if result["seconds"] is None else f"  {result['cpu_seconds']:6.1f} s of processor"
    return f"{name:65s} peak rss {peak:5.2f} GB  anonymous {anonymous:5.2f}{seconds}"


if __name__ == "__main__":
    main()
