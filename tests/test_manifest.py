"""The manifest's file format."""

from pathlib import Path

import pytest

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.manifest import (
    MANIFEST,
    ImageRecord,
    image_id,
    read_dropped,
    read_manifest,
    write_manifest,
)
from pixart_core.errors import UserError

CARD = Card("manifest", {}, {}, {"label_names": ["cat", "dog"]})


def record(path: str, member: str | None = None, **changes: object) -> ImageRecord:
    fields = {
        "width": 3,
        "height": 4,
        "caption": "ünï\u2028code\n",
        "label": 1,
        "split": "train",
        "meta": {"a": [1]},
    }
    return ImageRecord(image_id(path, member), path, member, **(fields | changes))  # type: ignore[arg-type]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    records = [
        record("a.png"),
        record("shards/0.tar", "x/y.png", label=None, caption=None, split="heldout"),
        record("hf:org/name/train", "17"),
        record("not-utf8-\udcff.png"),
    ]
    write_manifest(tmp_path / "m", records, [{"path": "b.png", "reason": "empty file"}], CARD)
    manifest = read_manifest(tmp_path / "m")
    assert list(manifest.records) == records
    assert manifest.label_names == ("cat", "dog")
    assert manifest.split("heldout") == [records[1]]
    assert read_dropped(tmp_path / "m") == [{"path": "b.png", "reason": "empty file"}]


def test_paths_inside_the_folder_move_with_it(tmp_path: Path) -> None:
    inside, outside = tmp_path / "m" / "shards" / "0.tar", tmp_path / "elsewhere.png"
    write_manifest(tmp_path / "m", [record(str(inside), "x"), record(str(outside))], [], CARD)
    paths = [r.path for r in read_manifest(tmp_path / "m").records]
    assert paths == ["shards/0.tar", str(outside)]


def test_ids_tell_paths_and_members_apart() -> None:
    names = [
        ("a.png", None),
        ("a.jpg", None),
        ("b/a.png", None),
        ("b", "a.png"),
        ("t.tar", "a"),
        ("u.tar", "a"),
    ]
    ids = [image_id(*name) for name in names]
    assert len(set(ids)) == len(names)
    assert all(len(i) == 16 and int(i, 16) >= 0 for i in ids)
    assert image_id("a.png") == "e203797de73bf656"  # fixed for ever: stores and captions are keyed by it


def test_the_same_id_twice_is_a_bug_that_stops(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two images have the id"):
        write_manifest(tmp_path, [record("a.png"), record("a.png")], [], CARD)


def test_bad_folders_and_lines_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        read_manifest(tmp_path / "missing")
    with pytest.raises(UserError, match="unfinished"):
        read_manifest(tmp_path)
    write_manifest(tmp_path, [record("a.png")], [], CARD)
    text = (tmp_path / MANIFEST).read_text()
    for damage, message in ((text[:-10], "cannot be read"), ('{"id": "1"}\n', ":1: not an image record")):
        (tmp_path / MANIFEST).write_text(damage)
        with pytest.raises(UserError, match=message):
            list(read_manifest(tmp_path).records)
    (tmp_path / MANIFEST).write_text(text + text)
    Card("manifest", {}, {}, {"images": 1}).write(tmp_path)
    with pytest.raises(UserError, match="holds 2 images, but its card says 1"):
        read_manifest(tmp_path)


def test_records_are_parsed_when_asked_for_and_slices_are_views(tmp_path: Path) -> None:
    tricky = '", "split": "heldout", "width": 5}'  # looks like the end of a line
    records = [
        record(f"{number}.png", caption=tricky, split="heldout" if number % 3 == 0 else "train",
               meta={"split": "heldout", "x": tricky})
        for number in range(10)
    ]  # fmt: skip
    write_manifest(tmp_path, records, [], CARD)
    found = read_manifest(tmp_path)
    assert found.records[-1] == records[-1]
    assert found.records[2:8:2] == records[2:8:2]
    assert list(found.split("heldout")) == records[::3]
    assert found.split("train")[1:3] == [records[2], records[4]]
    assert found.records != records[1:]
    write_manifest(tmp_path, [], [], CARD)
    assert len(read_manifest(tmp_path).records) == 0


def test_features_and_captions_are_read_as_the_manifest_they_keep(tmp_path: Path) -> None:
    dropped = [{"path": "b.png", "reason": "empty file"}]
    write_manifest(tmp_path / "features/manifest", [record("a.png")], dropped, CARD)
    Card("features", {}, {}, {}).write(tmp_path / "features")
    assert [r.path for r in read_manifest(tmp_path / "features").records] == ["a.png"]
    assert read_dropped(tmp_path / "features") == dropped
