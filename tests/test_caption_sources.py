"""Captions are the same wherever they lie; what cannot be read is named."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from caption_files import (
    COUNTED,
    SOURCES,
    counted,
    statistics,
    write,
    write_captions,
    write_folder,
    write_manifest_folder,
    write_txt,
)

from pixart_core.artifacts.captions import CaptionRow, row_line
from pixart_core.artifacts.card import Card
from pixart_core.artifacts.manifest import ImageRecord, image_id, write_manifest
from pixart_core.data import caption_sources
from pixart_core.data.caption_sources import open_captions, sample
from pixart_core.data.taggers import load_tagger
from pixart_core.errors import UserError

pytest.importorskip("textblob")


@pytest.mark.parametrize("kind", SOURCES)
def test_counts_are_the_same_wherever_captions_lie(tmp_path: Path, kind: str) -> None:
    result = statistics(SOURCES[kind](tmp_path / "data"))
    assert counted(result["captions"]) == COUNTED
    assert result["captions"]["valid_ratio"] == pytest.approx(3 / 5)
    assert result["captions"]["nouns_per_image"] == pytest.approx(36 / 12)
    blank = {"tar": 0, "hub": 0, "txt": 0, "jsonl": 2}.get(kind, 1)
    assert result["captions"]["without_caption"] == blank
    assert result["before"] is None
    assert result["tagger"] == load_tagger("textblob").name


def test_recaptioned_data_are_compared_with_their_own_captions(tmp_path: Path) -> None:
    folder = tmp_path / "captions"
    write_captions(folder, ["A red fox."] * 12)
    write_manifest_folder(folder / "manifest")
    result = statistics(folder)
    assert counted(result["before"]) == COUNTED
    assert (result["captions"]["captions"], result["captions"]["total_nouns"]) == (12, 12)
    other = statistics(folder, before=write_txt(tmp_path / "other"))
    assert counted(other["before"]) == COUNTED
    assert [line.split(" | ")[0] for line in result["markdown"][2:4]] == [
        "| captions, before",
        "| captions, after",
    ]
    assert result["markdown"][2].endswith(" 12 | 3 / 5 = 60.0% | 36 | 3.0 | - | - |")


def test_excluded_captions_and_those_of_images_that_are_gone_do_not_count(tmp_path: Path) -> None:
    rows = [
        CaptionRow("a", "A dog."),
        CaptionRow("b", "A cat, a cat, a cat.", ("repeated",), excluded=True),
        CaptionRow("c", "", ("failed",), excluded=True, reason="the server refused it"),
        CaptionRow("gone", "A house."),
    ]
    (tmp_path / "captions.jsonl").write_text("".join(map(row_line, rows)))
    Card("captions", {}, {}, {"images": 3}).write(tmp_path)
    result = statistics(tmp_path)
    assert (result["captions"]["captions"], result["captions"]["total_nouns"]) == (1, 1)
    assert result["captions"]["left_out"] == 2
    assert any("2 left out, e.g. b: excluded (repeated)" in note for note in result["notes"])
    (tmp_path / "captions.jsonl").write_text(row_line(rows[1]))
    with pytest.raises(UserError, match=r"no captions \(0 without, 1 left out: b: excluded \(repeated\)\)"):
        statistics(tmp_path)


def test_a_field_of_the_samples_is_a_caption_too(tmp_path: Path) -> None:
    manifest = write_manifest_folder(tmp_path / "manifest")
    result = statistics(manifest, before=manifest, before_column="alt")
    assert (result["before"]["captions"], result["before"]["total_nouns"]) == (13, 13)
    assert counted(result["captions"]) == COUNTED


def test_images_without_captions_before_are_said_and_not_compared(tmp_path: Path) -> None:
    folder = tmp_path / "captions"
    write_captions(folder)
    (folder / "manifest").mkdir()
    record = ImageRecord(image_id("0"), "0.png", None, 8, 8, None, None, "train")
    write_manifest(folder / "manifest", [record], [], Card("manifest", {}, {}))
    result = statistics(folder)
    assert result["before"] is None
    assert "the images had no captions before" in result["notes"]


def test_captions_that_cannot_be_read_are_counted_and_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "data")
    (tmp_path / "data" / "00.txt").write_bytes(b"\xff\xfe broken")
    part = statistics(tmp_path / "data")
    assert (part["captions"]["captions"], part["captions"]["left_out"]) == (11, 1)
    assert any("1 left out, e.g. " in note and "not UTF-8" in note for note in part["notes"])


@pytest.mark.parametrize(
    ("name", "data", "options", "message"),
    [
        (
            "a.jsonl",
            '{"url": 1}\n',
            {},
            r"no column is called caption, .*\(there is: url\); give col",
        ),
        ("a.jsonl", '{"caption": "x"}\n', {"column": "alt"}, r"no column 'alt' \(there is: caption\)"),
        ("a.csv", "url,alt\nx,y\n", {"column": "caption"}, r"no column 'caption' \(there is: url, alt\)"),
        ("a.txt", "a dog\n", {"column": "alt"}, "holds a caption a line and no column 'alt'"),
        ("a.txt", "", {}, r"a\.txt: holds no captions"),
        ("a.jsonl", "", {}, "holds no captions"),
        ("a.csv", "", {}, "holds no captions"),
        ("a.csv", "caption\n", {}, "holds no captions"),
        ("a.txt", b"a dog\na c\xe4t\n", {}, r"a\.txt:2: not UTF-8"),
        ("a.jsonl", b'{"caption": "a c\xe4t"}\n', {}, r"a\.jsonl:1: not UTF-8"),
        ("a.csv", b"caption\na dog\na c\xe4t\n", {}, r"a\.csv:3: not UTF-8"),
        ("a.jsonl", '{"caption": "x"}\n{"capt', {}, r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '"a dog"\n', {}, r"a\.jsonl:1: not a JSON object"),
        ("a.jsonl", '{"caption": 3}\n', {}, r"row 1: column 'caption' holds int, not text"),
        ("a.parquet", b"PAR1 cut off", {}, "cannot be read as parquet"),
        ("a.docx", "x", {}, r"captions are read from \.txt, .*\.parquet, \.tar, folders and hf:ID"),
    ],
)
def test_mistakes_get_one_clear_line(
    tmp_path: Path, name: str, data: bytes | str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        statistics(write(tmp_path / name, data), **options)
    assert "\n" not in str(caught.value)


def test_a_column_that_never_comes_is_missed_early(tmp_path: Path) -> None:
    lines = '{"alt": "a dog"}\n' * 5000 + "no JSON"
    with pytest.raises(UserError, match="no column 'caption'"):
        statistics(write(tmp_path / "a.jsonl", lines), column="caption")


def test_folders_that_hold_something_else_are_named(tmp_path: Path) -> None:
    Card("features", {}, {}).write(tmp_path)
    with pytest.raises(UserError, match="holds features, expected captions"):
        statistics(tmp_path)
    write_captions(tmp_path / "captions")
    with pytest.raises(UserError, match="have no column 'alt'"):
        statistics(tmp_path / "captions", column="alt")
    (tmp_path / "captions" / "card.json").unlink()
    with pytest.raises(UserError, match=r"unfinished; run it again, or give one of its \.jsonl"):
        statistics(tmp_path / "captions")
    assert counted(statistics(tmp_path / "captions" / "captions.jsonl")["captions"]) == COUNTED
    with pytest.raises(UserError, match=r"given as .*/\*\.txt"):
        statistics(Path(write_txt(tmp_path / "texts")).parent)


def test_a_sample_is_the_captions_with_the_smallest_hashes_in_any_order(tmp_path: Path) -> None:
    rows = [{"id": f"{n:x}", "caption": f"caption {n}"} for n in range(200)]
    chosen = []
    for name in ("a", "b"):
        random.Random(name).shuffle(rows)
        lines = "".join(json.dumps(row) + "\n" for row in [*rows, {"id": "blank", "caption": " "}])
        source = open_captions(str(write(tmp_path / f"{name}.jsonl", lines)))
        chosen.append({row.id for row in sample(source, 50).read()})
    by_hash = sorted((f"{n:x}" for n in range(200)), key=caption_sources._hash)
    assert chosen[0] == chosen[1] == set(by_hash[:50])
    assert [row.id for row in sample(source, 1000).read()] == [row.id for row in source.read()]
    same = write(tmp_path / "same.jsonl", '{"id": 1, "caption": "a dog"}\n' * 30)
    assert statistics(same, limit=7)["captions"]["captions"] == 7


def test_unequal_numbers_come_with_an_offer_of_equal_ones(tmp_path: Path) -> None:
    few = write(tmp_path / "few.txt", "a dog\n" * 4)
    many = write_txt(tmp_path / "data")
    unequal = statistics(many, before=str(few))
    assert any("--limit 4 compares samples of one size" in note for note in unequal["notes"])
    equal = statistics(many, before=str(few), limit=4)
    assert equal["captions"]["captions"] == equal["before"]["captions"] == 4
    assert not any("differ" in note for note in equal["notes"])
    assert any("VN/DN depend on how many captions" in note for note in equal["notes"])
