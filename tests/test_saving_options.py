"""Lengths of time as people and SLURM write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pixart_core.recipe.document import parse_document
from pixart_core.recipe.saving import Duration, duration_seconds

DURATION = TypeAdapter(Duration)


# sbatch(1): minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes and
# days-hours:minutes:seconds.
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400), ("90:30", 5430), ("2:30:00", 9000), ("1-12", 129600), ("1-12:30", 131400),
        ("1-00:00:10", 86410), ("3h50m", 13800), ("45s", 45), ("1.5h", 5400), ("1d 2h", 93600), (90, 5400),
        (0.5, 30), ("3H", 10800),
    ],
)  # fmt: skip
def test_forms(text, seconds) -> None:
    assert duration_seconds(DURATION.validate_python(text)) == seconds


@pytest.mark.parametrize("text", ["", "0", "0:00", "3h50", "x", "1:2:3:4", "-5", -5, True, None, [1]])
def test_what_is_no_length_of_time_is_told(text) -> None:
    with pytest.raises(ValidationError, match=r"length of time|no time at all"):
        DURATION.validate_python(text)


@given(st.integers(1, 10**8))
def test_what_is_stored_reads_as_the_same_again(seconds) -> None:
    stored = DURATION.validate_python(f"{seconds}s")
    assert duration_seconds(stored) == seconds
    assert DURATION.validate_python(stored) == stored


def test_a_recipe_need_not_quote_it() -> None:
    for text, seconds in (("3:50:00", 13800), ("1-12:00:00", 129600), ("90", 5400), ("3h50m", 13800)):
        data = parse_document(f"max_train_time: {text}", "r").data
        assert duration_seconds(DURATION.validate_python(data["max_train_time"])) == seconds
