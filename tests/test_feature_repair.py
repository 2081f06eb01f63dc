"""Laws of repairs: damage is found and named, only damaged shards are encoded again, to the same bytes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from extraction import files, make_step, write_captions, write_encoders, write_pictures

from pixart_cli.app import main
from pixart_core.artifacts.captions import CaptionRow
from pixart_core.artifacts.features import FeatureStore
from pixart_core.artifacts.manifest import image_id
from pixart_core.encoders import feature_encode
from pixart_core.encoders.extract import run_extraction
from pixart_core.encoders.feature_export import export_features
from pixart_core.encoders.feature_import import import_features
from pixart_core.encoders.feature_repair import RepairOptions, repair_features, verify_features
from pixart_core.encoders.text import TextEncoder
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.features import ImportFeaturesStep

IMAGE, TEXT = "image-32x32-00000.safetensors", "text-00000.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, encoders/ and the store features/."""
    folder = tmp_path_factory.mktemp("made")
    write_pictures(folder / "data", range(24))
    write_encoders(folder / "encoders")
    run_extraction(make_step(folder / "data", folder / "encoders"), folder / "features", Silent())
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "features", tmp_path / "features")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of pictures or captions of every call of an encoder."""
    calls: list[int] = []
    moments, texts = feature_encode.encode_moments, TextEncoder._encode_ids

    def images(vae, pixels, batch_size):
        calls.append(len(pixels))
        return moments(vae, pixels, batch_size)

    def captions(self, ids):
        calls.append(len(ids))
        return texts(self, ids)

    monkeypatch.setattr(feature_encode, "encode_moments", images)
    monkeypatch.setattr(TextEncoder, "_encode_ids", captions)
    return calls


def flip_byte(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("name", [IMAGE, TEXT])
def test_a_flipped_byte_is_found_named_and_repaired_by_its_shard_alone(
    made: Path, store: Path, encoded: list[int], name: str, place: float
) -> None:
    flip_byte(store / name, place)
    result = verify_features(store, Silent())
    (damaged,) = result["damaged"]
    assert not result["sound"]
    assert damaged["shard"] == name
    opened = FeatureStore(made / "features")
    possible = opened.sample_ids((32, 32)) if name == IMAGE else list(map(str, range(8)))
    assert len(damaged["samples"]) == 1
    assert damaged["samples"][0] in possible
    result = repair_features(store, RepairOptions(), Silent())
    assert (result["sound"], result["repaired"], result["different"]) == (True, [name], [])
    assert sum(encoded) == 8
    assert files(store) == files(made / "features")
    assert verify_features(store, Silent())["sound"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("harm", [Path.unlink, cut, lambda path: flip_byte(path, 0.001)])
@pytest.mark.parametrize("name", [IMAGE, TEXT, "plan-00000.safetensors"])
def test_lost_cut_and_unreadable_files_are_made_again(
    made: Path, store: Path, encoded: list[int], name: str, harm: Callable[[Path], None]
) -> None:
    harm(store / name)
    assert [damage["shard"] for damage in verify_features(store, Silent())["damaged"]] == [name]
    assert repair_features(store, RepairOptions(), Silent())["sound"]
    assert sum(encoded) == (0 if name.startswith("plan") else 8)
    assert files(store) == files(made / "features")


def test_the_command_tells_damage_by_its_exit_code(
    store: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def pixart(*args: str) -> tuple[int, dict]:
        with pytest.raises(SystemExit) as stop:
            main(["extract-features", "--verify", str(store), "--json", *args])
        return stop.value.code, json.loads(capsys.readouterr().out)

    assert pixart()[0] == 0
    flip_byte(store / TEXT, 0.5)
    code, told = pixart()
    assert (code, told["sound"], told["damaged"][0]["shard"]) == (1, False, TEXT)
    code, told = pixart("--repair", "--device", "cpu")
    assert (code, told["sound"], told["repaired"]) == (0, True, [TEXT])
    assert files(store) == files(made / "features")


def test_data_that_moved_are_asked_for_and_used(made: Path, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "old", range(24))
    store = tmp_path / "features"
    run_extraction(make_step(data, made / "encoders"), store, Silent())
    before = files(store)
    flip_byte(store / IMAGE, 0.5)
    flip_byte(store / TEXT, 0.5)
    damaged = files(store)
    data.rename(tmp_path / "new")
    with pytest.raises(UserError, match=r"old: the data that .* are not there; say where .* --data"):
        repair_features(store, RepairOptions(), Silent())
    assert files(store) == damaged
    moved = RepairOptions(data=str(tmp_path / "new"))
    assert set(repair_features(store, moved, Silent())["repaired"]) == {IMAGE, TEXT}
    assert files(store) == before


def test_what_has_changed_is_refused_and_the_store_stays_as_it_is(made: Path, tmp_path: Path) -> None:
    data, encoders = write_pictures(tmp_path / "data", range(24)), write_encoders(tmp_path / "encoders")
    rows = [CaptionRow(image_id(f"{number:03d}.png"), f"kind {number % 3}") for number in range(24)]
    captions = write_captions(tmp_path / "captions", rows)
    store = tmp_path / "features"
    run_extraction(make_step(data, encoders, captions=str(captions)), store, Silent())
    flip_byte(store / IMAGE, 0.5)
    flip_byte(store / TEXT, 0.5)
    damaged = files(store)

    def refused(message: str, **options: str) -> None:
        with pytest.raises(UserError, match=message):
            repair_features(store, RepairOptions(**options), Silent())

    other = write_encoders(tmp_path / "others", seed=1)
    refused(r"made with encoders \(weights \w+\), .*others has the weights \w+; give --vae", vae=str(other))
    refused("has the weights .*; give --text-encoder", text_encoder=str(other))
    changed = write_captions(tmp_path / "changed", [CaptionRow(row.id, "new") for row in rows])
    refused("captions are not those that .* was planned with", captions=str(changed))
    captions.rename(tmp_path / "moved")
    refused("captions of .* are not there; give --captions")
    assert files(store) == damaged
    first = next(name for name in FeatureStore(store).sample_ids((32, 32)) if name)
    (path,) = [path for path in data.glob("*.png") if image_id(path.name) == first]
    kept = path.read_bytes()
    shutil.copy(data / "001.png", path)
    moved = {"captions": str(tmp_path / "moved")}
    refused(r"has 48x24 pixels, it had 32x32 when it was scanned", **moved)
    path.unlink()
    refused(rf"{path.name}: cannot be read", **moved)
    assert files(store) == damaged
    path.write_bytes(kept)
    assert repair_features(store, RepairOptions(**moved), Silent())["sound"]
    assert verify_features(store, Silent())["sound"]


def test_a_manifest_of_other_data_is_named_before_anything_is_given_up(made: Path, store: Path) -> None:
    records = store / "manifest" / "manifest.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    records.write_text("".join(lines[:1]))
    card = store / "manifest" / "card.json"
    card.write_text(card.read_text().replace('"images": 24', '"images": 1'))
    flip_byte(store / IMAGE, 0.5)
    damaged = files(store)
    with pytest.raises(UserError, match=r"lacks the image .* of other data; run the command"):
        repair_features(store, RepairOptions(), Silent())
    assert files(store) == damaged


def test_a_repair_that_was_killed_goes_on(made: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip_byte(store / IMAGE, 0.5)
    flip_byte(store / TEXT, 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(feature_encode, "encode_moments", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            repair_features(store, RepairOptions(), Silent())
    with pytest.raises(UserError):
        FeatureStore(store)
    told = verify_features(store, Silent())
    assert (told["sound"], told["complete"], told["damaged"]) == (False, False, [])
    result = repair_features(store, RepairOptions(), Silent())
    assert (result["sound"], result["complete"]) == (True, True)
    assert files(store) == files(made / "features")


def test_an_imported_store_is_repaired_from_what_was_imported(made: Path, tmp_path: Path) -> None:
    export_features(made / "features", "webdataset", tmp_path / "export", Silent())
    step = ImportFeaturesStep(source=str(tmp_path / "export"))
    import_features(step, tmp_path / "store", Silent())
    before = files(tmp_path / "store")
    flip_byte(tmp_path / "store" / IMAGE, 0.5)
    result = repair_features(tmp_path / "store", RepairOptions(), Silent())
    assert (result["repaired"], result["different"]) == ([IMAGE], [])
    assert files(tmp_path / "store") == before
    (tmp_path / "store" / "plan-00000.safetensors").unlink()
    assert repair_features(tmp_path / "store", RepairOptions(), Silent())["sound"]
    assert files(tmp_path / "store") == before
    (tmp_path / "export").rename(tmp_path / "gone")
    flip_byte(tmp_path / "store" / IMAGE, 0.5)
    with pytest.raises(UserError, match="is not a folder; give the folder of the features"):
        repair_features(tmp_path / "store", RepairOptions(), Silent())


@pytest.mark.parametrize("lost", [IMAGE, "plan-00000.safetensors"])
def test_an_import_that_has_changed_is_refused_and_the_store_stays_as_it_is(
    made: Path, tmp_path: Path, lost: str
) -> None:
    export_features(made / "features", "hf", tmp_path / "export", Silent())
    import_features(ImportFeaturesStep(source=str(tmp_path / "export")), tmp_path / "store", Silent())
    flip_byte(tmp_path / "store" / TEXT, 0.5)
    (tmp_path / "store" / lost).unlink()
    damaged = files(tmp_path / "store")
    fewer = make_step(write_pictures(tmp_path / "data", range(20)), made / "encoders")
    run_extraction(fewer, tmp_path / "features", Silent())
    export_features(tmp_path / "features", "hf", tmp_path / "other", Silent())
    with pytest.raises(UserError, match=r"are gone from the data|no longer gives the same plan"):
        repair_features(tmp_path / "store", RepairOptions(data=str(tmp_path / "other")), Silent())
    assert files(tmp_path / "store") == damaged


def test_a_lost_plan_that_the_data_no_longer_give_is_refused_and_the_store_stays_as_it_is(
    made: Path, tmp_path: Path
) -> None:
    data, encoders = write_pictures(tmp_path / "data", range(24)), made / "encoders"
    rows = [CaptionRow(image_id(f"{number:03d}.png"), f"kind {number % 3}") for number in range(24)]
    captions = write_captions(tmp_path / "captions", rows)
    store = tmp_path / "features"
    run_extraction(make_step(data, encoders, captions=str(captions)), store, Silent())
    whole = files(store)
    (store / "plan-00000.safetensors").unlink()
    (store / IMAGE).unlink()
    damaged = files(store)
    changed = write_captions(tmp_path / "changed", [CaptionRow(row.id, "new") for row in rows])
    message = f"{store}/plan-00000.safetensors was lost, and the data no longer gives the same plan"
    with pytest.raises(UserError, match=message):
        repair_features(store, RepairOptions(captions=str(changed)), Silent())
    data.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="are not there; say where"):
        repair_features(store, RepairOptions(), Silent())
    assert files(store) == damaged
    assert repair_features(store, RepairOptions(data=str(tmp_path / "moved")), Silent())["sound"]
    assert files(store) == whole


def test_a_check_counts_something_in_a_small_store_too(store: Path) -> None:
    totals: list[int] = []
    done: list[int] = []
    listener = Silent()
    listener.start = lambda task, total: totals.append(total)  # type: ignore[method-assign]
    listener.advance = lambda task, units=1, note="": done.append(units)  # type: ignore[method-assign]
    assert verify_features(store, listener)["sound"]
    size = sum(path.stat().st_size for path in store.glob("*.safetensors"))
    assert totals == [sum(done)] == [size // 1000]
    assert 0 < size < 10**6
