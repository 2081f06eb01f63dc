"""`pixart evaluate`: benchmarks on sample sets, then the report."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixart_core.artifacts.card import card_for
from pixart_core.encoders.device import choose_device
from pixart_core.evaluation.clip_bench import clip_results
from pixart_core.evaluation.compbench.layout import read_any_samples
from pixart_core.evaluation.compbench.score import score_compbench, share_compbench
from pixart_core.evaluation.distance_bench import distance_results, open_reference
from pixart_core.evaluation.feature_cache import FeatureCache
from pixart_core.evaluation.networks import load_networks
from pixart_core.evaluation.outcome import Outcome
from pixart_core.evaluation.paired import pair_pictures
from pixart_core.evaluation.pictures import Work, look, sampled_pictures
from pixart_core.evaluation.report import write_report
from pixart_core.evaluation.report_data import build_report
from pixart_core.evaluation.sample_set import SampleSet, read_training_run, true_scenes
from pixart_core.evaluation.shapes_bench import shapes_results
from pixart_core.evaluation.shapes_detect import Detection, detect_scene
from pixart_core.launch import Processes, connect
from pixart_core.progress import Progress
from pixart_core.recipe.evaluate import EvaluateStep

CACHE = ".evaluation"


def run_evaluation(step: EvaluateStep, output: Path, progress: Progress) -> dict[str, Any]:
    """Score every sample set with every benchmark and write `report.html`, `.md` and `.json`.

    Features of images are kept in a cache: killed and run again, or run by several processes, it ends with
    the same bytes.

    Returns:
        "metrics": {sample set: {benchmark or protocol id: result}}, and the paths "output" and "report".

    Raises:
        UserError: a source that is missing, unfinished or without what a benchmark needs.
        PixartError: the disk is full; what is cached is kept.
    """
    processes = connect()
    sets = [
        read_any_samples(name, Path(str(source))).first(step.limit).of(step.whole.get(name))
        for name, source in step.samples.items()
    ]
    runs = [read_training_run(name, Path(str(source))) for name, source in step.runs.items()]
    if "shapes" in step.bench:
        for samples in sets:
            true_scenes(samples)  # refuses prompts without ground truth before the long work
    device = choose_device(step.device, processes.local_rank)
    networks = load_networks(step, device)
    root = cache_folder(step, output)
    works: dict[str, Work] = {
        extractor.id: (extractor, FeatureCache(root, extractor.id, extractor.dimensions))
        for extractor in networks.extractors
    }

    outcome = Outcome({samples.name: {} for samples in sets})
    reference = open_reference(step, networks, root, progress, processes) if networks.distances else None
    digests, found = _look(step, sets, works, progress, processes)
    if networks.distances:
        assert reference is not None
        asked = {bench: works[extractor.id] for bench, extractor in networks.distances.items()}
        distance_results(outcome, step, sets, digests, asked, reference, output, progress, processes)
    compbench: dict[str, Any] = {"device": device, "batch_size": step.batch_size, "seed": step.seed}
    if "compbench" in step.bench and processes.count > 1:
        for samples in sets:
            share_compbench(samples, step.compbench, root, processes, **compbench)
    if not processes.first:
        processes.wait()
        return {"output": str(output)}
    if "shapes" in step.bench:
        shapes_results(outcome, step, sets, found)
    if networks.clip:
        clip_results(outcome, step, sets, digests, networks.clip, works[networks.clip.images.id][1], root)
    if "compbench" in step.bench:
        for samples in sets:
            scored = score_compbench(samples, step.compbench, root, progress, **compbench)
            outcome.add_compbench(samples, scored)
    pair_pictures(outcome, step, sets)
    result = _report(outcome, step, sets, runs, output)
    processes.wait()
    return result


def cache_folder(step: EvaluateStep, output: Path) -> Path:
    """Where features are kept: as the step says, else beside the report, so that reports share it."""
    if step.cache is not None:
        return Path(step.cache).expanduser()
    folder = output.absolute().parent
    return (folder if os.access(folder, os.W_OK) or not folder.exists() else output) / CACHE


def _look(
    step: EvaluateStep,
    sets: Sequence[SampleSet],
    works: Mapping[str, Work],
    progress: Progress,
    processes: Processes,
) -> tuple[dict[str, list[str]], dict[str, list[Detection]]]:
    """(digests, detected scenes) of the pictures of each set; each is read once for all benches."""
    digests: dict[str, list[str]] = {}
    found: dict[str, list[Detection]] = {samples.name: [] for samples in sets}
    for samples in sets:
        scenes = found[samples.name]

        def detect(picture: Image.Image, scenes: list[Detection] = scenes) -> None:
            scenes.append(detect_scene(np.asarray(picture)))

        visit = detect if "shapes" in step.bench else None
        if works or visit:
            digests[samples.name] = look(
                sampled_pictures(samples), list(works.values()), step.batch_size, progress, processes, visit
            )
    return digests, found


def _report(
    outcome: Outcome, step: EvaluateStep, sets: Sequence[SampleSet], runs: Sequence[Any], output: Path
) -> dict[str, Any]:
    outcome.mark_partial(sets)
    card = card_for("report", step, {"metrics": outcome.metrics})
    pipeline = None if step.pipeline is None else _from_report(str(step.pipeline), output)
    report = build_report(outcome, sets, runs, card=card, pipeline=pipeline)
    write_report(report, sets, output)
    card.write(output)
    return {"output": str(output), "report": str(output / "report.html"), "metrics": outcome.metrics}


def _from_report(source: str, output: Path) -> str:
    """A folder as seen from the report's folder, so that the whole run can be moved; a hub id as it is."""
    return os.path.relpath(source, output) if Path(source).is_dir() else source
