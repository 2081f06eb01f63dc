"""`pixart evaluate`: benchmarks on sample sets, then the report."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixart_core.artifacts.card import card_for
from pixart_core.artifacts.manifest import ImageRecord
from pixart_core.data.images import ImageReader
from pixart_core.data.scan import scan_images
from pixart_core.errors import UserError
from pixart_core.evaluation.frechet import (
    Extractor,
    Moments,
    extract,
    extractor_label,
    frechet_with_error,
    load_extractor,
)
from pixart_core.evaluation.report import write_report
from pixart_core.evaluation.report_data import Verdict, build_report
from pixart_core.evaluation.sample_set import SampleSet, read_sample_set, read_training_run, true_scenes
from pixart_core.evaluation.shapes import mistakes, score_shapes
from pixart_core.evaluation.shapes_detect import describe, detect_scene
from pixart_core.progress import Progress
from pixart_core.recipe.data import DataOptions
from pixart_core.recipe.schema import EvaluateStep

MAX_REFERENCE = 30_000  # images, as in the usual FID-30K


def run_evaluation(step: EvaluateStep, output: Path, progress: Progress) -> dict[str, Any]:
    """Score every sample set with every benchmark and write `report.html` and `report.json`.

    Returns:
        "metrics": {sample set: {"shapes": {metric: Score}, "frechet/EXTRACTOR": {...}}}, and the paths
        "output" and "report".

    Raises:
        UserError: a source that is missing, unfinished or without what a benchmark needs.
    """
    if "frechet" in step.bench and step.reference is None:
        raise UserError("bench frechet compares with real images: give reference")
    sets = [read_sample_set(name, Path(str(source))) for name, source in step.samples.items()]
    runs = [read_training_run(name, Path(str(source))) for name, source in step.runs.items()]

    metrics: dict[str, dict[str, Any]] = {samples.name: {} for samples in sets}
    verdicts: dict[str, list[Verdict]] = {}
    if "shapes" in step.bench:
        for samples in sets:
            scores, verdicts[samples.name] = _shapes(samples, step, progress)
            metrics[samples.name]["shapes"] = scores
    if "frechet" in step.bench:
        for name, result in _frechet(sets, step, progress).items():
            metrics[name][f"frechet/{extractor_label(str(step.features))}"] = result

    card = card_for("report", step, {"metrics": metrics})
    report = build_report(
        metrics,
        sets,
        runs,
        verdicts,
        card=card,
        pipeline=None if step.pipeline is None else _from_report(str(step.pipeline), output),
    )
    write_report(report, sets, output)
    card.write(output)
    return {"output": str(output), "report": str(output / "report.html"), "metrics": metrics}


def _from_report(source: str, output: Path) -> str:
    """A folder as seen from the report's folder, so that the whole run can be moved; a hub id as it is."""
    return os.path.relpath(source, output) if Path(source).is_dir() else source


def _shapes(
    samples: SampleSet, step: EvaluateStep, progress: Progress
) -> tuple[dict[str, Any], list[Verdict]]:
    truths = true_scenes(samples)
    task = f"shapes {samples.name}"
    progress.start(task, len(truths))
    found = []
    for picture in samples.pictures():
        found.append(detect_scene(np.asarray(picture)))
        progress.advance(task)
    progress.finish(task)
    prompts = [sample.prompt for sample in samples.samples]
    scores = score_shapes(truths, found, prompts, bootstrap=step.bootstrap, seed=step.seed)
    verdicts = [
        Verdict(tuple(mistakes(truth, seen)), describe(seen))
        for truth, seen in zip(truths, found, strict=True)
    ]
    return scores, verdicts


def _frechet(sets: Sequence[SampleSet], step: EvaluateStep, progress: Progress) -> Mapping[str, Any]:
    """Distance of each sample set to the reference images (the held-out ones, if some are)."""
    extractor = load_extractor(str(step.features))
    manifest, _ = scan_images(DataOptions.model_validate({"data": str(step.reference)}), progress)
    reader = ImageReader(manifest.folder)
    heldout, train = manifest.split("heldout"), manifest.split("train")
    reference = _extract_records(heldout or train, reader, extractor, progress)
    moments = Moments.of(reference)
    results = {}
    for samples in sets:
        task = f"frechet {samples.name}"
        progress.start(task, None)
        features = extract(samples.pictures(), extractor)
        value, error = frechet_with_error(features, moments)
        results[samples.name] = {
            "value": round(value, 6),
            "jackknife_se": None if error is None else round(error, 6),
            "n": len(features),
            "n_reference": len(reference),
            "dimensions": features.shape[1],
        }
        if heldout and len(train) >= len(features):
            # What as many real pictures score: the floor that this number of samples allows.
            real = _extract_records(train[: len(features)], reader, extractor, progress)
            results[samples.name]["real_images"] = round(frechet_with_error(real, moments)[0], 6)
        progress.finish(task)
    return results


def _extract_records(
    records: Sequence[ImageRecord], reader: ImageReader, extractor: Extractor, progress: Progress
) -> Any:
    chosen = records[:MAX_REFERENCE]
    progress.start("reference", len(chosen))

    def images() -> Any:
        for record in chosen:
            image: Image.Image = reader.read(record)
            progress.advance("reference")
            yield image

    features = extract(images(), extractor)
    progress.finish("reference")
    return features
