"""Peak memory of `pixart sample` on the paper's pipeline at its true size, with random weights.

    OMP_NUM_THREADS=1 python benchmarks/sampling_memory.py --json benchmarks/results/sampling_memory.json

T5-XXL's encoder (4.76 billion parameters, stored in bf16), XL/2 and Stable Diffusion's VAE draw one picture
per mode, each in a process of its own. Needs 12.3 GB of disk below --folder (removed at the end), 16 GB of
memory, and bitsandbytes for the modes that use it.
"""

import argparse
import io
import json
import math
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, write_result
from paper_pipeline import PROMPT
from PIL import Image
from process_memory import run_watched
from safetensors import safe_open

GOAL_BYTES = 8e9
ROOM_BYTES = 15e9
# Name and options beyond dtype=bf16.
MODES: dict[str, list[str]] = {
    "text encoder whole": [],
    "8-bit text encoder": ["text_encoder_quantization=8bit"],
    "4-bit text encoder": ["text_encoder_quantization=4bit"],
    "text encoder layer by layer": ["offload=sequential"],
    "the same, decoding in tiles": ["offload=sequential", "vae_tiling=true"],
}
IMPORTS = "import pixart_core.sampling.sample"


def main() -> None:
    """Build the pipeline, draw a picture in each mode, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where there is room"
    )
    parser.add_argument("--pipeline", type=Path, help="made by paper_pipeline.py before; stays")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--pixels", type=int, default=512, help="side of the picture")
    parser.add_argument("--steps", type=int, default=2, help="solver steps")
    parser.add_argument("--tiny", action="store_true", help="a tiny pipeline, to try this program")
    arguments = parser.parse_args()
    free = shutil.disk_usage(arguments.folder).free
    if not arguments.tiny and not arguments.pipeline and free < ROOM_BYTES:
        sys.exit(f"{free / 1e9:.0f} GB free in {arguments.folder}; give --folder with {ROOM_BYTES / 1e9:.0f}")
    machine = describe_machine()
    folder = Path(tempfile.mkdtemp(prefix="sampling-memory-", dir=arguments.folder))
    try:
        pipeline = arguments.pipeline or build(folder / "pipeline", tiny=arguments.tiny)
        results = {
            "pipeline": {"weights": "random", "parameters": count_parameters(pipeline)},
            "picture": {"pixels": arguments.pixels, "steps": arguments.steps, "dtype": "bf16"},
            "modes": measure(pipeline, folder, arguments.pixels, arguments.steps),
        }
    finally:
        shutil.rmtree(folder)
    if arguments.json:
        write_result(arguments.json, "benchmarks/sampling_memory.py", results, machine)


def build(folder: Path, *, tiny: bool) -> Path:
    """In a process of its own: ru_maxrss of a child counts what its parent held when it was started."""
    program = Path(__file__).with_name("paper_pipeline.py")
    subprocess.run([sys.executable, str(program), str(folder), *["--tiny"] * tiny], check=True)
    return folder


def count_parameters(pipeline: Path) -> dict[str, int]:
    """Stored values of each part."""
    counts = {}
    for part in ("text_encoder", "transformer", "vae"):
        counts[part] = 0
        for file in sorted((pipeline / part).glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    counts[part] += math.prod(opened.get_slice(name).get_shape())
    return counts


def measure(pipeline: Path, folder: Path, pixels: int, steps: int) -> list[dict[str, Any]]:
    """One row a mode; first that of the interpreter and its imports alone."""
    alone = run_watched([sys.executable, "-c", IMPORTS])
    rows = [{"mode": "imports alone", **_bytes(alone)}]
    whole = None
    for number, (name, options) in enumerate(MODES.items()):
        if any("quantization" in option for option in options) and find_spec("bitsandbytes") is None:
            print(f"{name}: left out, bitsandbytes is not installed", file=sys.stderr)
            continue
        output = folder / f"samples-{number}"
        command = [str(Path(sys.executable).with_name("pixart")), "sample", PROMPT, "--json"]
        command += ["--checkpoint", str(pipeline), "--output", str(output), "--device", "cpu"]
        for option in [
            "dtype=bf16",
            f"sizes=[[{pixels},{pixels}]]",
            f"num_inference_steps={steps}",
            *options,
        ]:
            command += ["--set", option]
        usage = run_watched(command)
        picture = (output / "images/000000.png").read_bytes()
        whole = whole or picture
        row = {"mode": name, "options": options, **_bytes(usage)}
        row |= {"under_8_gb": usage.peak_rss < GOAL_BYTES, "phases": json.loads(usage.output)["memory"]}
        row |= {"largest_difference_of_255": _difference(whole, picture)}
        rows.append(row)
        print(_line(row), flush=True)
    return rows


def _bytes(usage: Any) -> dict[str, Any]:
    return {
        "peak_rss_bytes": usage.peak_rss,
        "peak_anonymous_bytes": usage.peak_anonymous,
        "seconds": round(usage.seconds, 1),
        "cpu_seconds": round(usage.cpu_seconds, 1),
    }


def _difference(one: bytes, other: bytes) -> int:
    """Of the pixels of two PNGs, the largest."""
    pixels = [np.asarray(Image.open(io.BytesIO(data))).astype(int) for data in (one, other)]
    return int(np.abs(pixels[0] - pixels[1]).max())


def _line(row: dict[str, Any]) -> str:
    phases = ", ".join(f"{name} {peak['resident'] / 1e9:.2f}" for name, peak in row["phases"].items())
    return (
        f"{row['mode']:30s} resident {row['peak_rss_bytes'] / 1e9:5.2f} GB  anonymous "
        f"{row['peak_anonymous_bytes'] / 1e9:5.2f}  {row['cpu_seconds']:6.1f} s of processor  ({phases})"
    )


if __name__ == "__main__":
    main()
