"""Filters: usable images that are left out by choice, counted apart from broken ones."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from broken_images import encode, noise
from PIL import Image, ImageFilter

from pixart_core.artifacts.card import Card, read_card
from pixart_core.artifacts.manifest import image_id, read_dropped, write_manifest
from pixart_core.data.leakage import normalised
from pixart_core.data.scan import FLAGGED, manifest_for, scan_images
from pixart_core.encoders.tiny_t5 import build_tokenizer
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.data import DataOptions, Filters
from pixart_core.recipe.load import step_from_options

Ledger = dict[str, tuple[str, str]]


def options(data: Path, *, filters: dict[str, Any] | None = None, **others: Any) -> DataOptions:
    return DataOptions.model_validate({"data": str(data), "filters": filters or {}, **others})


def scan(data: Path, **kwargs: Any) -> tuple[list[str], Ledger]:
    """(names of what was kept, name → (reason, detail) of the rest)."""
    manifest, dropped = scan_images(options(data, **kwargs), Silent())
    kept = [Path(record.path).name for record in manifest.records]
    return kept, {row["path"]: (row["reason"], row.get("detail", "")) for row in dropped}


def picture(seed: int, size: int = 96) -> Image.Image:
    return noise(9, 9, seed=seed).resize((size, size), Image.Resampling.BICUBIC)


def save(folder: Path, name: str, image: Image.Image, caption: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(encode(image, "JPEG" if name.endswith("jpg") else "PNG"))
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption)
    return folder


def test_only_extreme_aspects_are_left_out_by_default(tmp_path: Path) -> None:
    for name, size in {"a": (30, 300), "b": (300, 30), "c": (30, 301), "d": (301, 30), "e": (3, 30)}.items():
        save(tmp_path, f"{name}.png", noise(*size))
    kept, ledger = scan(tmp_path, max_bad_fraction=0.0)  # filtered images are not broken ones
    assert kept == ["a.png", "b.png", "e.png"]
    reason = "width/height outside 0.1 to 10"
    assert ledger == {"c.png": (reason, "30x301"), "d.png": (reason, "301x30")}
    assert len(scan(tmp_path, filters={"aspect": None})[0]) == 5
    assert scan(tmp_path, filters={"aspect": [1, 20]})[0] == ["b.png", "d.png"]


def test_size_and_caption_length_keep_what_is_within(tmp_path: Path) -> None:
    save(tmp_path, "small.png", noise(63, 200), "five words are in here")
    save(tmp_path, "large.png", noise(64, 65), "five words are in here")
    save(tmp_path, "none.png", noise(70, 70))
    save(tmp_path, "long.png", noise(70, 70), "word " * 9)
    assert scan(tmp_path, filters={"min_size": 64})[1] == {
        "small.png": ("shorter side below 64 pixels", "63x200")
    }
    kept, ledger = scan(tmp_path, filters={"min_size": 64, "caption_words": [5, 8]})
    assert kept == ["large.png"]
    assert ledger["none.png"] == ("caption not of 5 to 8 words", "0 words")
    assert ledger["long.png"] == ("caption not of 5 to 8 words", "9 words")
    assert scan(tmp_path, filters={"caption_words": [6, None]})[0] == ["long.png"]
    assert scan(tmp_path, filters={"caption_characters": [0, 22]})[0] == [
        "large.png",
        "none.png",
        "small.png",
    ]


def test_of_exact_duplicates_the_first_is_kept_and_named(tmp_path: Path) -> None:
    save(tmp_path, "a.png", picture(0))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "c.png").write_bytes(encode(picture(0), compress_level=1))  # other bytes, same pixels
    save(tmp_path, "d.png", picture(1))
    (tmp_path / "e.png").write_bytes(b"broken")
    bad = {"max_bad_fraction": 0.5}
    kept, ledger = scan(tmp_path, filters={"exact_duplicates": "bytes"}, **bad)
    assert kept == ["a.png", "c.png", "d.png"]
    assert ledger["b/copy.png"] == ("same file as another", "a.png")
    kept, ledger = scan(tmp_path, filters={"exact_duplicates": "pixels"}, **bad)
    assert kept == ["a.png", "d.png"]
    assert ledger["c.png"] == ("same pixels as another", "a.png")
    # What another filter leaves out is nobody's original.
    (tmp_path / "c.txt").write_text("three words here")
    kept, _ = scan(tmp_path, filters={"exact_duplicates": "pixels", "caption_words": [1, None]}, **bad)
    assert kept == ["c.png"]


def test_near_duplicates_are_left_out_within_the_distance(tmp_path: Path) -> None:
    save(tmp_path, "a.png", picture(0))
    save(tmp_path, "b.jpg", picture(0, 140))
    save(tmp_path, "c.png", picture(0).filter(ImageFilter.GaussianBlur(1)))
    save(tmp_path, "d.png", picture(1))
    for flat in ("e", "f"):
        save(tmp_path, f"{flat}.png", Image.new("RGB", (90, 90), "red" if flat == "e" else "blue"))
    kept, ledger = scan(tmp_path, filters={"near_duplicates": 4})
    assert kept == ["a.png", "d.png", "e.png", "f.png"]
    assert {path: detail for path, (_, detail) in ledger.items()} == {"b.jpg": "a.png", "c.png": "a.png"}


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    build_tokenizer(["one two three four"]).save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def test_captions_longer_than_the_text_encoder_reads_are_counted_flagged_dropped_or_stop(
    tmp_path: Path, tokenizer: str
) -> None:
    data = tmp_path / "data"
    for name, caption in {"a": "one two", "b": "one two three four", "c": "two " * 9, "d": None}.items():
        save(data, f"{name}.png", noise(), caption)
    chosen = {"tokenizer": tokenizer, "filters": {"max_tokens": 4}}  # the end mark counts: b has 5
    said: list[str] = []
    listener = Silent()
    listener.say = said.append  # type: ignore[method-assign]
    manifest = manifest_for(options(data, **chosen), tmp_path / "m", listener)
    assert len(manifest.records) == 4
    assert "2 of 3 captions (66.67%) are longer than 4 tokens" in said
    flags = [json.loads(line) for line in (tmp_path / "m" / FLAGGED).read_text().splitlines()]
    assert [(row["path"], row["flag"]) for row in flags] == [
        ("b.png", "caption of 5 tokens"), ("c.png", "caption of 10 tokens"),
    ]  # fmt: skip
    assert flags[0]["id"] == image_id("b.png")
    card = read_card(tmp_path / "m") or {}
    assert card["details"]["tokens"] == {"max_tokens": 4, "captions": 3, "longer": 2}
    dropping = chosen | {"filters": {"max_tokens": 4, "truncated": "drop"}}
    kept, ledger = scan(data, **dropping)
    assert kept == ["a.png", "d.png"]
    assert ledger["c.png"] == ("caption longer than 4 tokens", "10 tokens")
    stopping = chosen | {"filters": {"max_tokens": 4, "max_truncated_fraction": 0.6}}
    with pytest.raises(UserError, match=r"2 of 3 captions \(66\.67%\) .* more than max_truncated_fraction"):
        scan(data, **stopping)
    manifest_for(options(data), tmp_path / "m", Silent())
    assert not (tmp_path / "m" / FLAGGED).exists()


def test_a_limit_counts_what_filters_let_by_and_nothing_behind_it(tmp_path: Path, tokenizer: str) -> None:
    data = tmp_path / "data"
    for number in range(12):
        save(data, f"{number:02d}.png", picture(number // 2), "two " * (2 if number < 6 else 9))
    filters = {"exact_duplicates": "pixels", "max_tokens": 4}
    manifest = manifest_for(
        options(data, filters=filters, limit=3, tokenizer=tokenizer), tmp_path / "m", Silent()
    )
    assert [Path(r.path).name for r in manifest.records] == ["00.png", "02.png", "04.png"]
    assert [row["path"] for row in read_dropped(tmp_path / "m")] == ["01.png", "03.png"]
    details = (read_card(tmp_path / "m") or {})["details"]
    assert (details["images"], details["filtered"]) == (3, 2)
    assert details["tokens"] == {"max_tokens": 4, "captions": 5, "longer": 0}


def test_captions_ids_and_sums_of_a_list_do_not_leak(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number, caption in enumerate(["A red  fox!", "A red fox, asleep", "Blue", "Green"]):
        save(data, f"{number}.png", noise(seed=number), caption)
    digest = hashlib.sha256((data / "2.png").read_bytes()).hexdigest()
    (tmp_path / "list.txt").write_text(f"\ufeffa RED fox\n\n{digest.upper()}\n{image_id('3.png')}\n...\n")
    kept, ledger = scan(data, exclude=str(tmp_path / "list.txt"))
    assert kept == ["1.png"]
    assert ledger == {
        "0.png": ("leakage: caption in the list", "a RED fox"),
        "2.png": ("leakage: file in the list", digest),
        "3.png": ("leakage: id in the list", image_id("3.png")),
    }
    assert normalised("Ａ  “Red”_fox…") == "a red fox"


@pytest.mark.parametrize("kind", ["folder", "manifest"])
def test_images_of_a_benchmark_do_not_leak(tmp_path: Path, kind: str) -> None:
    bench = save(tmp_path / "bench", "coco.png", picture(0), "A benchmark caption.")
    save(bench, "other.png", picture(5))
    (bench / "broken.png").write_bytes(b"?")
    if kind == "manifest":
        manifest, dropped = scan_images(options(bench, max_bad_fraction=0.5), Silent())
        write_manifest(bench, manifest.records, dropped, Card("manifest", {}, {}))
    data = tmp_path / "data"
    (data / "x").mkdir(parents=True)
    (data / "x" / "same.png").write_bytes(encode(picture(0), compress_level=1))
    save(data, "near.jpg", picture(5, 120))
    save(data, "said.png", picture(7), "a benchmark caption")
    save(data, "fine.png", picture(8), "a caption")
    kept, ledger = scan(data, exclude=str(bench))
    assert kept == ["fine.png"]
    assert {path: (reason, Path(detail).name) for path, (reason, detail) in ledger.items()} == {
        "x/same.png": ("leakage: same pixels as an image of the list", "coco.png"),
        "near.jpg": ("leakage: looks like an image of the list", "other.png"),
        "said.png": ("leakage: caption in the list", "coco.png"),
    }


def test_filters_are_set_by_name_and_impossible_ones_are_refused() -> None:
    step = step_from_options(
        DataOptions, {"data": "x"}, ["filters.min_size=256", "filters.aspect=[0.5, 2]"], {}
    )
    assert (step.filters.min_size, step.filters.aspect) == (256, (0.5, 2.0))
    assert step.filters == Filters.model_validate({"min_size": 256, "aspect": [0.5, 2]})
    for wrong, message in {
        "filters.aspect=[2, 0.5]": "2.* is more than 0.5",
        "filters.near_duplicates=12": "less than or equal to 11",
        "filters.min_sise=3": "did you mean min_size",
    }.items():
        with pytest.raises(UserError, match=message):
            step_from_options(DataOptions, {"data": "x"}, [wrong], {})


def test_filters_that_leave_nothing_or_come_too_late_are_refused(tmp_path: Path) -> None:
    data = save(tmp_path / "data", "a.png", noise())
    with pytest.raises(UserError, match="the filters leave none of 1 images: shorter side below 500"):
        scan(data, filters={"min_size": 500})
    manifest_for(options(data), tmp_path / "m", Silent())
    for late in ({"filters": {"min_size": 5}}, {"exclude": "x"}, {"streaming": True}, {"tokenizer": "x"}):
        with pytest.raises(UserError, match=f"was filtered when it was made; leave {next(iter(late))} out"):
            scan(tmp_path / "m", **late)
    with pytest.raises(UserError, match=r"exclude: .*nowhere: no such file or folder"):
        scan(data, exclude=str(tmp_path / "nowhere"))
    (tmp_path / "empty.txt").write_text("\n ...\n")
    with pytest.raises(UserError, match="holds no captions, ids or SHA-256 sums"):
        scan(data, exclude=str(tmp_path / "empty.txt"))
