"""Aspect buckets against the tables of diffusers, and as laws."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixart_core.data.buckets import PAPER_BUCKETS_1024, assign_bucket, bucket_table
from pixart_core.errors import UserError

sides = st.integers(1, 10_000)


@pytest.mark.parametrize("resolution", [256, 512, 1024])
def test_the_paper_has_40_buckets_of_about_equal_area(resolution: int) -> None:
    table = bucket_table("paper", resolution)
    assert len(set(table)) == 40
    ratios = [height / width for height, width in table]
    assert ratios == sorted(ratios)
    assert (ratios[0], ratios[-1]) == (0.25, 4.0)
    for height, width in table:
        assert height % (resolution // 16) == width % (resolution // 16) == 0
        # The widest differ most: (576, 1664) has 91 % of 1024² pixels, (512, 2048) all of them.
        assert 0.86 <= height * width / resolution**2 <= 1.03


@pytest.mark.parametrize("resolution", [256, 512, 1024])
def test_diffusers_inference_bins_are_a_part_of_ours(resolution: int) -> None:
    pipelines = pytest.importorskip("diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha")
    bins = getattr(pipelines, f"ASPECT_RATIO_{resolution}_BIN").values()
    theirs = {(int(height), int(width)) for height, width in bins}
    assert len(theirs) == 33
    assert theirs <= set(bucket_table("paper", resolution))


@given(sides, sides)
def test_the_assigned_bucket_is_the_nearest_in_log_ratio(height: int, width: int) -> None:
    chosen = assign_bucket(height, width, PAPER_BUCKETS_1024)
    target = math.log(height / width)
    nearest = min(abs(math.log(h / w) - target) for h, w in PAPER_BUCKETS_1024)
    assert abs(math.log(chosen[0] / chosen[1]) - target) <= nearest + 1e-12


@given(sides, sides, st.integers(1, 50))
def test_only_the_shape_of_an_image_decides_not_its_size(height: int, width: int, factor: int) -> None:
    table = bucket_table("paper", 512)
    assert assign_bucket(height, width, table) == assign_bucket(factor * height, factor * width, table)


@pytest.mark.parametrize("size", PAPER_BUCKETS_1024)
def test_an_image_of_a_buckets_size_gets_that_bucket(size: tuple[int, int]) -> None:
    assert assign_bucket(*size, PAPER_BUCKETS_1024) == size


def test_equally_near_buckets_give_the_first() -> None:
    assert assign_bucket(64, 64, [(112, 80), (80, 112)]) == (112, 80)
    assert assign_bucket(64, 64, [(80, 112), (112, 80)]) == (80, 112)


def test_square_and_own_tables() -> None:
    assert bucket_table("square", 64) == ((64, 64),)
    assert bucket_table([(96, 96), (112, 80)], 96) == ((96, 96), (112, 80))


@pytest.mark.parametrize(
    ("spec", "resolution", "message"),
    [
        ("paper", 300, "256, 512, 1024 pixels, not 300"),
        ("papr", 512, "neither square, paper"),
        ([], 512, "at least one"),
        ([(0, 64)], 512, "positive"),
        ([(64, 64), (64, 64)], 512, "twice"),
    ],
)
def test_tables_that_make_no_sense_are_refused(spec: object, resolution: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bucket_table(spec, resolution)  # type: ignore[arg-type]
