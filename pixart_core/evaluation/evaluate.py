"""`pixart evaluate`: benchmarks on sample sets, then the report."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pixart_core.artifacts.card import card_for
from pixart_core.encoders.device import choose_device
from pixart_core.evaluation.caches import Caches
from pixart_core.evaluation.clip_bench import clip_results
from pixart_core.evaluation.compbench.availability import absent_parts
from pixart_core.evaluation.compbench.layout import read_any_samples
from pixart_core.evaluation.compbench.parts import Parts
from pixart_core.evaluation.compbench.score import Scoring, open_compbench
from pixart_core.evaluation.distance_bench import distance_results, open_reference
from pixart_core.evaluation.image_folder import refuse_without_prompts
from pixart_core.evaluation.networks import Networks, check_networks, load_networks
from pixart_core.evaluation.outcome import Outcome
from pixart_core.evaluation.paired import pair_pictures
from pixart_core.evaluation.pictures import Features, Onlooker, look, sampled_pictures
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
    sets = _sample_sets(step)
    runs = [read_training_run(name, Path(str(source))) for name, source in step.runs.items()]
    if "shapes" in step.bench:
        for samples in sets:
            true_scenes(samples)  # refuses prompts without ground truth before the long work
    device = choose_device(step.device, processes.local_rank)
    networks = load_networks(step, device)
    caches = Caches(cache_folder(step, output))
    scorings = _open_compbench(step, sets, networks, device, caches, progress, processes)
    features = {
        extractor.id: Features(extractor, caches.features(extractor.id, extractor.dimensions))
        for extractor in networks.extractors
    }

    outcome = Outcome({samples.name: {} for samples in sets})
    reference = None
    if networks.distances:
        reference = open_reference(step, networks, caches.root, progress, processes)
    digests, found = _look(step, sets, list(features.values()), scorings, progress, processes)
    if reference is not None:
        asked = {bench: features[extractor.id] for bench, extractor in networks.distances.items()}
        distance_results(outcome, step, sets, digests, asked, reference, output, progress, processes)
    if not processes.first:
        processes.wait()
        return {"output": str(output)}
    if "shapes" in step.bench:
        shapes_results(outcome, step, sets, found)
    if networks.clip:
        clip_results(outcome, step, sets, digests, networks.clip, caches)
    for samples in sets:
        if samples.name in scorings:
            outcome.add_compbench(samples, scorings[samples.name].result())
    pair_pictures(outcome, step, sets)
    result = _report(outcome, step, sets, runs, output)
    processes.wait()
    return result


def plan_evaluation(step: EvaluateStep) -> dict[str, Any]:
    """What `run_evaluation` would score: {"images": {sample set: count}}; nothing is loaded or looked at.

    Raises:
        UserError: a sample set, the reference or weights are missing.
    """
    sets = _sample_sets(step)
    if "shapes" in step.bench:
        for samples in sets:
            true_scenes(samples)
    check_networks(step)
    plan: dict[str, Any] = {"images": {samples.name: len(samples.samples) for samples in sets}}
    if "compbench" in step.bench:
        missing, downloads = absent_parts(step.compbench)
        plan["missing"] = [part.as_json() for part in missing]
        plan["downloads"] = [dataclasses.asdict(part) for part in downloads]
    return plan


def _sample_sets(step: EvaluateStep) -> list[SampleSet]:
    sets = [
        read_any_samples(name, Path(str(source))).first(step.limit).of(step.whole.get(name))
        for name, source in step.samples.items()
    ]
    for samples in sets:
        refuse_without_prompts(samples, step.bench)
    return sets


def _open_compbench(
    step: EvaluateStep,
    sets: Sequence[SampleSet],
    networks: Networks,
    device: torch.device,
    caches: Caches,
    progress: Progress,
    processes: Processes,
) -> dict[str, Scoring]:
    """T2I-CompBench for each set, before the long work; the models are loaded once for all of them."""
    if "compbench" not in step.bench:
        return {}
    options = step.compbench
    clip = networks.clip if options.clip == str(step.clip_model) else None
    parts = Parts(options, options.categories, device, step.batch_size, clip)
    return {
        samples.name: open_compbench(
            samples, options, parts, caches, progress, seed=step.seed, first=processes.first
        )
        for samples in sets
    }


def cache_folder(step: EvaluateStep, output: Path) -> Path:
    """Where features are kept: as the step says, else beside the report, so that reports share it."""
    if step.cache is not None:
        return Path(step.cache).expanduser()
    folder = output.absolute().parent
    return (folder if os.access(folder, os.W_OK) or not folder.exists() else output) / CACHE


def _look(
    step: EvaluateStep,
    sets: Sequence[SampleSet],
    features: Sequence[Features],
    scorings: Mapping[str, Scoring],
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
        scoring = scorings.get(samples.name)
        onlookers: list[Onlooker] = [*features, *(scoring.askers if scoring else [])]
        if onlookers or visit:
            digests[samples.name] = look(
                sampled_pictures(samples), onlookers, step.batch_size, progress, processes, visit
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
