"""Peak memory and time of `pixart convert` on files of the real size (XL/2, random weights).

    python benchmarks/conversion_memory.py --json benchmarks/results/conversion_memory.json

Needs about 20 GB of disk below --folder (removed at the end); every conversion is a process of its own.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import describe_machine, write_result
from process_memory import Usage, run_watched

# Name, source file and arguments of `pixart convert`; `*` stands for the tiny encoders' folder.
CASES = (
    ("DiT .pt to PixArt", "dit.pt", ("--to", "pixart")),
    ("DiT .pt in fp16 to PixArt", "dit-fp16.pt", ("--to", "pixart")),
    ("DiT .pt to a DiT checkpoint", "dit.pt", ("--to", "dit")),
    ("official .pth with EMA to a pipeline", "pixart.pth", ("--to", "diffusers", "*")),
    ("official .pth with EMA to a pipeline, fp16", "pixart.pth", ("--to", "diffusers", "*", "dtype=fp16")),
    ("official .pth with EMA to ours, shards", "pixart.pth", ("--to", "pixart", "max_shard_size=500MB")),
    ("diffusers fp16 to ours, fp32", "fp16", ("--to", "pixart")),
    ("ours to official", "ours", ("--to", "official")),
    ("ours to official, fp16", "ours", ("--to", "official", "dtype=fp16")),
)
IMPORTS = "import pixart_core.conversion.convert"
INFO_CASES = ("dit.pt", "pixart.pth", "fp16", "ours")


def main() -> None:
    """Build the files, convert them one after another, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where there is room"
    )
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--only", help="only cases whose name contains this")
    arguments = parser.parse_args()
    machine = describe_machine()
    folder = Path(tempfile.mkdtemp(prefix="conversion-memory-", dir=arguments.folder))
    results: list[dict[str, Any]] = []
    try:
        # In a process of its own: ru_maxrss of a child counts what its parent held when it was started.
        build = Path(__file__).with_name("xl_files.py")
        subprocess.run([sys.executable, str(build), str(folder)], check=True, capture_output=True)
        for result in measure(folder, arguments.only):
            results.append(result)
            print(format_result(result), flush=True)
    finally:
        shutil.rmtree(folder)
    if arguments.json:
        write_result(arguments.json, "benchmarks/conversion_memory.py", results, machine)


def measure(folder: Path, only: str | None) -> Iterator[dict[str, Any]]:
    """One row a command; first that of the interpreter and its imports alone."""
    convert = [str(Path(sys.executable).with_name("pixart")), "convert"]
    yield row("imports alone", run_watched([sys.executable, "-c", IMPORTS]), 0)
    encoders = f"--vae={folder}/encoders", f"--text-encoder={folder}/encoders"
    for name, source, options in CASES:
        if only is None or only in name:
            output = folder / "output"
            command = [*convert, "--from", str(folder / source), "--output", str(output), "--json"]
            for option in options:
                command += encoders if option == "*" else [option]
            usage = run_watched(command)
            yield row(name, usage, size_of(folder / source), output_bytes=size_of(output)) | agreement(usage)
            shutil.rmtree(output)
    for source in INFO_CASES:
        name = f"--info {source}"
        if only is None or only in name:
            usage = run_watched([*convert, "--info", str(folder / source), "--json"])
            assert json.loads(usage.output)["parameters_total"] > 6e8
            yield row(name, usage, size_of(folder / source))


def row(name: str, usage: Usage, source: int, **more: Any) -> dict[str, Any]:
    """Figures of a run."""
    return {
        "case": name,
        "source_bytes": source,
        "peak_rss_bytes": usage.peak_rss,
        "peak_anonymous_bytes": usage.peak_anonymous,
        "seconds": round(usage.seconds, 1),
        "cpu_seconds": round(usage.cpu_seconds, 1),
    } | more


def agreement(usage: Usage) -> dict[str, Any]:
    """Seconds of the comparison with the DiT, part of its conversion."""
    found = re.search(r"compare with the DiT: \d+/\d+ in ([\d.]+) s", usage.errors)
    return {"agreement_seconds": float(found[1])} if found else {}


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def format_result(result: dict[str, Any]) -> str:
    """A line for a person."""
    gb = {key: (result[f"{key}_bytes"] or 0) / 1e9 for key in ("source", "peak_rss", "peak_anonymous")}
    return (
        f"{result['case']:45s} source {gb['source']:5.2f} GB  peak rss {gb['peak_rss']:5.2f}  "
        f"anonymous {gb['peak_anonymous']:5.2f}  {result['cpu_seconds']:6.1f} s of processor"
    )


if __name__ == "__main__":
    main()
