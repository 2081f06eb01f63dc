"""Bytes, writing and random reading of the feature store against other ways of keeping features.

    OMP_NUM_THREADS=1 python benchmarks/feature_store.py --json benchmarks/results/feature_store.json

Samples of the real shape: moments (4, 32, 32), mean and std; 4096-wide states of 120 tokens of which 78 are
valid on average, heavy-tailed over channels and values, rounded to bf16 as T5 in bf16 gives them. Needs 3 GB
below --folder (removed at the end) and 4 GB of memory, and takes 10 minutes.

Writing and warm reading: CPU time of one thread, formats interleaved in alternating order, medians of the
rounds; "ratio" is to the store, paired within a round. The store is measured twice as a control: "valid"
says that its ratio to itself lies within 0.97 to 1.03. Warm reading comes twice: as it is (every batch in new
memory, but the store's, which takes back its own), and with memory for the states given to all. Cold: pages
dropped (posix_fadvise) before each round; wall time, and what was read from the disk.

MDS is measured if it can be imported. It asks for torchvision and the packages of four clouds, so give it a
folder of its own: pip install --no-deps --target DIR mosaicml-streaming catalogue brotli python-snappy
cramjam zstd, then PYTHONPATH=DIR.
"""

import argparse
import gc
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from feature_formats import MDS, Arrow, Format, Npz, PixArtStore, Reference, Samples, WebDataset, mosaic
from machine import describe_machine, write_result

from pixart_core.artifacts.feature_reader import Shard

FORMATS: dict[str, Callable[[], Format]] = {
    "compressed fp32 npz + npy (reference)": Reference,
    "npz fp16": Npz,
    "WebDataset + index": WebDataset,
    **({"MDS": MDS} if mosaic() else {}),
    "Arrow (datasets)": Arrow,
    "store fp16": lambda: PixArtStore("fp16"),
    "store int8": lambda: PixArtStore("int8"),
    "store int8, again": lambda: PixArtStore("int8"),
}
OURS, CONTROL, REFERENCE = "store int8", "store int8, again", "compressed fp32 npz + npy (reference)"
BATCH = 32


def main() -> None:
    """Write, read warm and cold, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where there is room"
    )
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    machine = describe_machine()
    samples = make_samples(arguments.samples)
    folder = Path(tempfile.mkdtemp(prefix="feature-store-", dir=arguments.folder))
    try:
        results = measure(folder, samples, arguments.rounds)
    finally:
        shutil.rmtree(folder)
    for part, rows in results.items():
        print(f"\n{part}", "" if isinstance(rows, dict) else rows)
        for name, row in rows.items() if isinstance(rows, dict) else ():
            print(f"  {name:40s} {row}")
    if arguments.json:
        write_result(arguments.json, "benchmarks/feature_store.py", results, machine)


def measure(folder: Path, samples: Samples, rounds: int) -> dict[str, Any]:
    """All figures, by what was measured."""
    results: dict[str, Any] = {
        "samples": len(samples),
        "mean_valid_tokens": np.mean(samples.lengths).round(2),
    }
    few = Samples(samples.mean[:32], samples.std[:32], samples.states[:32], samples.lengths[:32])
    results["write_cpu_ms_per_sample"] = compare(
        {name: writer(folder / "written", make(), few) for name, make in FORMATS.items()},
        max(rounds // 2, 7),
        32,
    )
    formats = {name: make() for name, make in FORMATS.items()}
    for number, (name, form) in enumerate(formats.items()):
        place = folder / str(number)
        place.mkdir()
        form.write(place, samples)
        form.open(place)
        results.setdefault("kilobytes_per_sample", {})[name] = size_of(place) / len(samples) / 1e3
    check(formats, samples)
    order = np.random.default_rng(0).permutation(len(samples))
    results["read_warm_cpu_ms_per_sample"] = compare(
        {name: reader(form, order) for name, form in formats.items()}, rounds, None
    )
    memory = torch.empty(BATCH * 120 * samples.states.shape[2])
    results["read_warm_into_given_memory_cpu_ms_per_sample"] = compare(
        {name: reader(form, order, memory) for name, form in formats.items()}, rounds, None
    )
    results["read_cold"] = {
        name: read_cold(form, folder / str(number), order)
        for number, (name, form) in enumerate(formats.items())
    }
    with mock.patch.object(Shard, "read_ahead", return_value=None):
        place = folder / str(list(formats).index(OURS))
        results["read_cold"]["store int8, no reading ahead"] = read_cold(formats[OURS], place, order)
    return results


def make_samples(count: int) -> Samples:
    """Samples of the real shape, the same every time."""
    generator = torch.Generator().manual_seed(0)
    lengths = np.random.default_rng(0).normal(78, 27, count).round().clip(4, 120).astype(int)
    channels = torch.exp(0.7 * torch.randn(4096, generator=generator))
    channels[torch.randperm(4096, generator=generator)[:16]] *= 30  # outlier channels, as T5 has them
    states = torch.empty(count, 120, 4096)
    for row in states:
        # Student's t with 5 degrees of freedom: heavy tails.
        chi = torch.randn(5, 120, 4096, generator=generator).square_().mean(0).sqrt_()
        torch.randn(120, 4096, generator=generator, out=row)
        row.div_(chi).mul_(channels / 20)
    mean = 4 * torch.randn(count, 4, 32, 32, generator=generator)
    std = torch.exp(torch.randn(count, 4, 32, 32, generator=generator) - 4)
    return Samples(mean, std, states.bfloat16().float(), lengths.tolist())


def writer(folder: Path, form: Format, samples: Samples) -> Callable[[], int]:
    """Writes `samples` into an empty folder; what was there goes before the clock starts again."""

    def write() -> int:
        folder.mkdir()
        started = time.process_time_ns()
        form.write(folder, samples)
        spent = time.process_time_ns() - started
        shutil.rmtree(folder)
        return spent

    return write


def reader(form: Format, order: np.ndarray, memory: torch.Tensor | None = None) -> Callable[[], int]:
    """Reads batches at random; the slow formats fewer of them."""
    slow = form.__class__.__name__ == "Reference"
    chosen = order[: BATCH * 2] if slow else order

    def read() -> int:
        started = time.process_time_ns()
        for start in range(0, len(chosen), BATCH):
            form.batch(chosen[start : start + BATCH].tolist(), memory)
        return (time.process_time_ns() - started) // len(chosen)

    return read


def compare(cases: dict[str, Callable[[], int]], rounds: int, divisor: int | None) -> dict[str, Any]:
    """Medians in ms, and ratios to the store that are paired within a round."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name in list(cases) if number % 2 else reversed(cases):
            gc.collect()
            spent = cases[name]() / (divisor or 1) / 1e6
            if number:  # the first round only warms up
                times[name].append(spent)
    result: dict[str, Any] = {}
    for name, values in times.items():
        ratios = [value / ours for value, ours in zip(values, times[OURS], strict=True)]
        result[name] = {
            "ms": round(statistics.median(values), 4),
            "ratio": round(statistics.median(ratios), 3),
        }
    result[CONTROL]["valid"] = 0.97 <= result[CONTROL]["ratio"] <= 1.03
    return result


def read_cold(form: Format, folder: Path, order: np.ndarray, rounds: int = 5) -> dict[str, float]:
    """Median wall ms a sample after dropping the pages, and the kilobytes a sample that the disk gave."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    spans, kilobytes = [], []
    for number in range(rounds):
        form.close()
        gc.collect()
        for path in files:
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
        form.open(folder)
        chosen = np.random.default_rng(number).permutation(order)[: 4 * BATCH]
        before, started = disk_bytes(), time.perf_counter()
        for start in range(0, len(chosen), BATCH):
            form.batch(chosen[start : start + BATCH].tolist(), None)
        spans.append((time.perf_counter() - started) / len(chosen) * 1e3)
        kilobytes.append((disk_bytes() - before) / len(chosen) / 1e3)
    return {
        "ms": round(statistics.median(spans), 3),
        "kilobytes_read": round(statistics.median(kilobytes), 1),
    }


def disk_bytes() -> int:
    """What this process had fetched from storage so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def check(formats: dict[str, Format], samples: Samples) -> None:
    """All formats deliver the samples, up to the rounding of their storage."""
    chosen = [3, 0, len(samples) - 1]
    longest = max(samples.lengths[number] for number in chosen)
    for name, form in formats.items():
        mean, std, text, mask = form.batch(chosen, None)
        assert text.shape == (3, longest, samples.states.shape[2]), name
        for row, number in enumerate(chosen):
            tokens = samples.tokens(number)
            assert mask[row].sum() == len(tokens), name
            assert (text[row, : len(tokens)] - tokens).norm() < 0.02 * tokens.norm(), name
            assert not text[row, len(tokens) :].any(), name
        assert (mean - samples.mean[chosen]).norm() < 0.02 * mean.norm(), name
        assert (std - samples.std[chosen]).norm() < 0.02 * std.norm(), name


def size_of(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
