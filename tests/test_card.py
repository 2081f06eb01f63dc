"""Cards and fingerprints: a changed input is seen, wherever it lies; a damaged card is no card."""

import json
from pathlib import Path

import pytest

from pixart_core.artifacts.card import Card, card_for, fingerprint, fingerprint_input, made_by, read_card
from pixart_core.errors import UserError
from pixart_core.recipe.caption import CaptionStep
from pixart_core.recipe.features import ExtractFeaturesStep
from pixart_core.recipe.schema import EvaluateStep, FromStep


@pytest.mark.parametrize("source", ["{}/*.tar", "{}/{{0..3}}.tar", "hf:{}", "hf:{}/train", "{}", "{}/0.tar"])
def test_changed_files_behind_a_source_change_its_fingerprint(tmp_path: Path, source: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "0.tar").write_bytes(b"a")
    place = source.format(folder)
    before = fingerprint_input(place)
    assert fingerprint_input(place) == before
    (folder / "0.tar").write_bytes(b"longer")
    assert fingerprint_input(place) != before


@pytest.mark.parametrize("source", ["google/t5-v1_1-xxl", "hf:org/name/train", "pixels-8x8", "none/*.tar"])
def test_what_is_no_file_is_its_own_fingerprint(source: str) -> None:
    assert fingerprint_input(source) == f"id:{source}"


def test_a_changed_model_folder_of_captioner_or_features_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    steps = [
        CaptionStep(data="x", captioner=str(tmp_path)),
        EvaluateStep(samples={"a": "b"}, features=str(tmp_path)),
    ]
    before = [card_for("x", step, {}).fingerprint for step in steps]
    (tmp_path / "config.json").write_text('{"other": 1}')
    for step, earlier in zip(steps, before, strict=True):
        assert card_for("x", step, {}).fingerprint != earlier
    assert EvaluateStep(samples={"a": "b"}).features == "pixels-8x8"
    assert EvaluateStep(samples={"a": "b"}, features={"step": "m"}).features == FromStep(step="m")


def test_a_card_is_that_of_the_same_work_alone() -> None:
    step = ExtractFeaturesStep(data="x")
    raw = {"kind": "features", "fingerprint": card_for("features", step, {"count": 3}).fingerprint}
    assert made_by(raw, step)
    assert not made_by(raw, ExtractFeaturesStep(data="x", resolution=256))
    assert not made_by(raw, CaptionStep(data="x"))


@pytest.mark.parametrize(
    "field", ["kind", "options", "inputs", "details", "schema_version", "pixart_version", "fingerprint"]
)
@pytest.mark.parametrize("value", [None, []])
def test_a_card_without_all_its_fields_is_damaged(tmp_path: Path, field: str, value: object) -> None:
    Card("features", {}, {}).write(tmp_path)
    assert Card.read(tmp_path, "features") == Card("features", {}, {})
    card = json.loads((tmp_path / "card.json").read_text())
    card[field] = value
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert read_card(tmp_path) is None
    with pytest.raises(UserError, match=r"damaged card\.json"):
        Card.read(tmp_path, "features")


def test_a_folder_is_known_by_names_sizes_and_times_of_its_files_linked_ones_too(tmp_path: Path) -> None:
    data, linked = tmp_path / "data", tmp_path / "linked"
    for name in ("a/x", "a.png", "a-b/y", "é", "a/.hidden", "b/c/d"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(name)
    files = sorted(path for path in data.rglob("*") if path.is_file())
    facts = [(str(f.relative_to(data)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    assert fingerprint_input(data) == fingerprint(facts)
    linked.mkdir()
    (data / "link").symlink_to(linked)
    (data / "circle").symlink_to(data)
    (data / "dead").symlink_to("nowhere")
    before = fingerprint_input(data)
    (linked / "new.png").write_text("new")
    assert fingerprint_input(data) != before
