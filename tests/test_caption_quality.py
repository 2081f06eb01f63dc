"""What is said about captions: flags, and the noun statistics of the paper's Table 1."""

import sys

import pytest

from pixart_core.data.caption_flags import caption_flags
from pixart_core.data.nouns import caption_statistics
from pixart_core.errors import UserError


@pytest.mark.parametrize(
    ("caption", "flags"),
    [
        ("A red circle on the left of a blue square. It is drawn in a flat style.", ()),
        ('The sign says "Stop."', ()),
        ("The image shows the top of the image, where the sky of the image is blue.", ()),
        ("", ("empty",)),
        (" \n. ", ("empty",)),
        ("A red circle on the left of", ("truncated",)),
        ("A cat, a cat, a cat, a cat, a cat.", ("repeated",)),
        ("very very very very big.", ("repeated",)),
        ("It is a nice picture. It is a nice picture. It is a nice picture.", ("repeated",)),
        ("I'm sorry, but I can't see any image.", ("refusal",)),
        ("As an AI language model, I", ("truncated", "refusal")),
        ("A sorry cat says I cannot.", ()),
    ],
)
def test_flags_name_what_is_wrong(caption: str, flags: tuple[str, ...]) -> None:
    assert caption_flags(caption) == flags


def test_noun_statistics_count_as_the_papers_table_1() -> None:
    pytest.importorskip("textblob")
    captions = ["A dog and a cat on the table."] * 11 + ["The dog sees a house in London!"]
    result = caption_statistics(iter(captions))
    assert (result["captions"], result["total_nouns"]) == (12, 3 * 11 + 3)
    assert result["distinct_nouns"] == 5  # dog, cat, table, house, london
    assert result["valid_distinct_nouns"] == 3  # more than 10 times: 12, 11 and 11; London and house once
    assert result["valid_ratio"] == pytest.approx(3 / 5)
    assert result["nouns_per_image"] == pytest.approx(36 / 12)
    assert "PatternTagger" in result["tagger"]
    assert result["reported"]["SAM-LLaVA"]["nouns_per_image"] == 29.3
    assert caption_statistics(captions[:10])["valid_distinct_nouns"] == 0  # exactly 10 is not more than 10


def test_the_papers_rows_agree_with_themselves() -> None:
    pytest.importorskip("textblob")
    for row in caption_statistics([])["reported"].values():
        ratio = row["valid_distinct_nouns"] / row["distinct_nouns"]
        assert row["valid_ratio"] == pytest.approx(ratio, abs=0.002)  # the counts are rounded to thousands


def test_statistics_without_a_tagger_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textblob.en.taggers", None)
    with pytest.raises(UserError, match=r"pip install 'pixart\[nouns\]'"):
        caption_statistics(["a cat"])
