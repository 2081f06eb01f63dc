"""Curves over guidance scales: of sets that differ in guidance alone, every point with its intervals."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from test_report import make_samples

from pixart_core.evaluation.guidance_curve import curve_chart, guidance_curves
from pixart_core.evaluation.sample_set import SampleSet, read_sample_set

METRICS = {
    "clip/b32-cos@1": {"score": 0.3, "ci95": [0.29, 0.31]},
    "fid/coco256-cleanfid@1": {"value": 10.0, "jackknife_se": 0.5},
    "fd-dinov2/l14@1": {"value": 100.0, "jackknife_se": None},
    "shapes": {},
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> SampleSet:
    folder: Path = make_samples(tmp_path_factory.mktemp("curve") / "set", 4)
    return read_sample_set("g", folder)


def at(samples: SampleSet, scale: float, **options: Any) -> SampleSet:
    card = dataclasses.replace(
        samples.card, options={**samples.card.options, "guidance_scale": scale, **options}
    )
    return dataclasses.replace(samples, name=f"g{scale:g}", card=card)


def metrics(*scales: float) -> dict[str, dict[str, Any]]:
    return {
        f"g{scale:g}": METRICS | {"clip/b32-cos@1": {"score": scale / 10, "ci95": [0.0, 1.0]}}
        for scale in scales
    }


def test_points_stand_in_the_order_of_guidance_with_their_intervals(samples: SampleSet) -> None:
    sets = [at(samples, scale) for scale in (4.5, 1.0, 3.0)]
    curves = guidance_curves(metrics(4.5, 1.0, 3.0), sets)
    assert [curve["y"] for curve in curves] == ["fid/coco256-cleanfid@1", "fd-dinov2/l14@1"]
    points = curves[0]["points"]
    assert [point["guidance_scale"] for point in points] == [1, 3, 4.5]
    assert [point["x"] for point in points] == [0.1, 0.3, 0.45]
    # Ten jackknife groups: t with 9 degrees of freedom.
    assert points[0]["y_ci95"] == pytest.approx([10 - 2.262157 * 0.5, 10 + 2.262157 * 0.5], abs=1e-3)
    assert curves[1]["points"][0]["y_ci95"] is None


def test_sets_that_differ_in_more_than_guidance_make_no_curve(samples: SampleSet) -> None:
    other_steps = [at(samples, 1.0), at(samples, 3.0, num_inference_steps=5)]
    assert guidance_curves(metrics(1.0, 3.0), other_steps) == []
    rows = tuple(dataclasses.replace(row, seed=row.seed + 1) for row in samples.samples)
    other_noise = [at(samples, 1.0), dataclasses.replace(at(samples, 3.0), samples=rows)]
    assert guidance_curves(metrics(1.0, 3.0), other_noise) == []
    assert guidance_curves(metrics(1.0), [at(samples, 1.0)]) == []


def test_chart_labels_every_point_and_stays_in_its_frame(samples: SampleSet) -> None:
    sets = [at(samples, scale) for scale in (1.0, 3.0, 4.5)]
    for curve in guidance_curves(metrics(1.0, 3.0, 4.5), sets):
        chart = curve_chart(curve)
        assert chart.count("<circle") == 3
        assert all(f">{label}</text>" in chart for label in ("1", "3", "4.5"))
        places = re.findall(r'c?[xy][12]?="(-?[\d.]+)"', chart)
        assert all(0 <= float(place) <= 380 for place in places)


def test_prompts_with_a_scale_of_their_own_make_no_point_and_a_part_is_marked(samples: SampleSet) -> None:
    rows = tuple(dataclasses.replace(row, guidance_scale=2.0) for row in samples.samples)
    own = [at(samples, 1.0), dataclasses.replace(at(samples, 3.0), samples=rows)]
    assert guidance_curves(metrics(1.0, 3.0), own) == []
    part = [at(samples, 1.0).of(100), at(samples, 3.0).of(100)]
    assert all(curve["partial"] for curve in guidance_curves(metrics(1.0, 3.0), part))
    assert not any(c["partial"] for c in guidance_curves(metrics(1.0, 3.0), [at(samples, s) for s in (1, 3)]))
