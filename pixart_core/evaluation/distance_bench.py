"""`bench: frechet, fid, cmmd, fd-dinov2`: every sample set against the same real images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pixart_core.evaluation.distances import (
    Compared,
    frechet_results,
    gaussian_of,
    kernel_results,
    paired,
    statistics_file,
)
from pixart_core.evaluation.extractors import Extractor
from pixart_core.evaluation.frechet import Distance, Gaussian
from pixart_core.evaluation.networks import Networks
from pixart_core.evaluation.outcome import Outcome
from pixart_core.evaluation.pictures import Features, look
from pixart_core.evaluation.reference import (
    RealImages,
    is_statistics,
    read_real_images,
    read_statistics,
    write_statistics,
)
from pixart_core.evaluation.sample_set import SampleSet
from pixart_core.launch import Processes
from pixart_core.progress import Progress
from pixart_core.recipe.evaluate import EvaluateStep

Statistics = dict[str, Gaussian]  # by bench


def open_reference(
    step: EvaluateStep, networks: Networks, root: Path, progress: Progress, processes: Processes
) -> RealImages | Statistics:
    """What samples are compared with; mistakes in it show before the long work.

    Args:
        root: of the caches; scans of images go there.

    Raises:
        UserError: it cannot be read, or its statistics are of another protocol.
    """
    source = str(step.reference)
    if not is_statistics(source):
        return read_real_images(source, step.reference_limit, root / "scans", progress, processes)
    path = Path(source).expanduser()
    return {
        bench: read_statistics(path, extractor, step.reference_protocol)
        for bench, extractor in networks.distances.items()
    }


def distance_results(
    outcome: Outcome,
    step: EvaluateStep,
    sets: Sequence[SampleSet],
    digests: Mapping[str, Sequence[str]],
    asked: Mapping[str, Features],
    reference: RealImages | Statistics,
    output: Path,
    progress: Progress,
    processes: Processes,
) -> None:
    """Enter the distances of all sets into `outcome`.

    Args:
        digests: of the samples of each set, whose features are in the caches of `asked`.
        asked: bench to its extractor and cache.

    Raises:
        UserError: a reference image is gone.
    """
    if isinstance(reference, dict):
        if processes.first:
            _against_statistics(outcome, step, sets, digests, asked, reference)
        return
    real = reference
    needed = list({features.extractor.id: features for features in asked.values()}.values())
    compared = look(real.pictures, needed, step.batch_size, progress, processes)
    others = _others(real, sets, needed, step, progress, processes)
    if not processes.first:
        return
    outcome.reference = {"images": len(compared), "left_out": real.left_out}
    entries = [
        Compared(samples.name, digests[samples.name], samples.prompts, others[: len(samples.samples)])
        if len(others) >= len(samples.samples)
        else Compared(samples.name, digests[samples.name], samples.prompts)
        for samples in sets
    ]
    distances: dict[str, Mapping[str, Distance]] = {}
    for bench, features in asked.items():
        extractor, cache = features.extractor, features.cache
        progress.say(f"{extractor.protocol}: {len(compared)} reference images")
        if bench == "cmmd":
            results, distances[extractor.protocol] = kernel_results(
                entries, extractor, cache, compared, "cmmd"
            )
            outcome.add(results, extractor.protocol)
            continue
        gaussian = gaussian_of(cache, compared)
        if step.save_statistics:
            write_statistics(statistics_file(output, extractor), gaussian, extractor)
        results, distances[extractor.protocol] = frechet_results(entries, extractor, cache, gaussian)
        outcome.add(results, extractor.protocol)
        if bench == "fid":
            kid = kid_protocol(extractor)
            results, distances[kid] = kernel_results(entries, extractor, cache, compared, "kid")
            outcome.add(results, kid)
    outcome.paired += paired(distances, {samples.name: samples.prompts for samples in sets})


def kid_protocol(extractor: Extractor) -> str:
    """The id of KID on the same features as a FID."""
    if extractor.standard:
        return extractor.protocol.replace("fid/", "kid/", 1)
    return extractor.protocol.replace("frechet/", "kernel/", 1)


def _against_statistics(
    outcome: Outcome,
    step: EvaluateStep,
    sets: Sequence[SampleSet],
    digests: Mapping[str, Sequence[str]],
    asked: Mapping[str, Features],
    statistics: Statistics,
) -> None:
    entries = [Compared(samples.name, digests[samples.name], samples.prompts) for samples in sets]
    distances: dict[str, Mapping[str, Distance]] = {}
    for bench, features in asked.items():
        extractor, cache = features.extractor, features.cache
        results, distances[extractor.protocol] = frechet_results(entries, extractor, cache, statistics[bench])
        outcome.add(results, extractor.protocol)
        outcome.reference = {"statistics": Path(str(step.reference)).name, "images": statistics[bench].count}
    outcome.paired += paired(distances, {samples.name: samples.prompts for samples in sets})


def _others(
    real: RealImages,
    sets: Sequence[SampleSet],
    onlookers: Sequence[Features],
    step: EvaluateStep,
    progress: Progress,
    processes: Processes,
) -> list[str]:
    """Digests of real images of other captions, as many as the largest set that there are enough for has."""
    fitting = [len(s.samples) for s in sets if len(s.samples) <= len(real.others)]
    pictures = real.as_many(max(fitting)) if fitting else None
    return [] if pictures is None else look(pictures, onlookers, step.batch_size, progress, processes)
