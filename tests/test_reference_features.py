"""Features that the released PixArt code wrote, brought into a store: the way of its users to this one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from extraction import write_encoders

from pixart_core.artifacts.checkpoint import read_facts
from pixart_core.artifacts.features import FeatureStore
from pixart_core.artifacts.manifest import image_id
from pixart_core.encoders.feature_import import import_features
from pixart_core.encoders.text import load_text_encoder
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.features import ImportFeaturesStep
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.training.loop import run_training

WIDTH, TOKENS = 16, 120
PATHS = ["a/0.png", "a/1.png", "b/deep/0.png", "b_deep/2.png", "3.png", "tall/4.png"]


def write_reference(folder: Path, side: int = 8) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """As tools/extract_features.py of the released code does it; (mean, std, valid tokens) by image id."""
    draws = np.random.default_rng(0)
    images, texts = folder / "img_vae_features_512resolution/noflip", folder / "caption_feature_wmask"
    for place in (images, texts, folder / "partition"):
        place.mkdir(parents=True, exist_ok=True)
    rows, expected = [], {}
    for number, path in enumerate(PATHS):
        name = "_".join(path.rsplit("/", 1))
        height = side * (2 if path.startswith("tall") else 1)
        moments = draws.random((8, height, side), np.float32)
        target = images / name.replace(".png", ".npy")
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, moments)
        mask = (np.arange(TOKENS) <= number)[None].astype(np.int64)
        states = draws.standard_normal((1, TOKENS, WIDTH)).astype(np.float32)
        target = texts / name.replace(".png", ".npz")
        target.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(target, caption_feature=states, attention_mask=mask)
        rows.append({"path": path, "prompt": f" prompt {number}", "height": 600, "width": 500, "ratio": 1.2})
        expected[image_id(path)] = (moments[:4], moments[4:], states[0, : number + 1])
    rows.append(rows[0] | {"path": "panorama.png", "ratio": 4.5})  # the released readers leave it out
    (folder / "partition/data_info.json").write_text(json.dumps(rows))
    return expected


def bring_in(source: Path, output: Path, **options: object) -> FeatureStore:
    given = {"source": str(source), "storage": "fp32", **options}
    import_features(ImportFeaturesStep.model_validate(given), output, Silent())
    return FeatureStore(output)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixart_core.encoders.imported_encoders.load_described_vae", _no_network)


def _no_network(*_: object) -> None:
    raise UserError("the hub cannot be reached")


def test_moments_and_valid_tokens_come_over_bit_by_bit(tmp_path: Path) -> None:
    expected = write_reference(tmp_path / "in")
    store = bring_in(tmp_path / "in", tmp_path / "out")
    assert store.buckets == {(64, 64): 5, (128, 64): 1}
    assert (store.scaling_factor, store.vae_downsampling, store.max_tokens) == (0.18215, 8, 120)
    seen = set()
    for bucket, count in store.buckets.items():
        batch = store.batch(bucket, range(count))
        for row, name in enumerate(batch.ids):
            mean, std, text = expected[name]
            np.testing.assert_array_equal(batch.mean[row].numpy(), mean)
            np.testing.assert_array_equal(batch.std[row].numpy(), std)
            np.testing.assert_array_equal(batch.text[row, batch.mask[row]].numpy(), text)
            assert batch.sizes[row].tolist() == [600, 500]
            seen.add(name)
    assert seen == expected.keys()


def test_other_names_and_lists_of_its_readers_are_found(tmp_path: Path) -> None:
    expected = write_reference(tmp_path / "in")
    images = tmp_path / "in/img_vae_features_512resolution/noflip"
    texts = tmp_path / "in/caption_feature_wmask"
    (images / "b_deep_2.npy").rename(images / "2.npy")  # as earlier versions named it
    (texts / "tall").mkdir()
    (texts / "tall_4.npz").rename(texts / "tall/4.npz")  # as the SAM reader looks for it
    (tmp_path / "in/partition/data_info.json").unlink()
    (tmp_path / "in/partition/part0.txt").write_text("".join(f"{path}\n" for path in PATHS))
    store = bring_in(tmp_path / "in", tmp_path / "out")
    assert {name for bucket in store.buckets for name in store.sample_ids(bucket)} == expected.keys()


def test_a_name_that_two_images_share_is_no_ones(tmp_path: Path) -> None:
    write_reference(tmp_path / "in")
    images = tmp_path / "in/img_vae_features_512resolution/noflip"
    # 0.npy could be that of a/0.png or of b/deep/0.png.
    (images / "a_0.npy").rename(images / "0.npy")
    with pytest.raises(UserError, match=r"1 of 6 samples .* a/0.png: noflip/a_0.npy is missing, or two"):
        bring_in(tmp_path / "in", tmp_path / "out")
    store = bring_in(tmp_path / "in", tmp_path / "out", max_bad_fraction=0.2)
    assert len(store) == 5


def test_training_on_them_needs_the_learned_embedding_or_the_text_encoder(tmp_path: Path) -> None:
    write_reference(tmp_path / "in")
    store = bring_in(tmp_path / "in", tmp_path / "out")
    tiny = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4, "sample_size": 8}
    options = {"model": ModelOptions(**tiny), "max_train_steps": 1, "global_batch_size": 2}
    options |= {"micro_batch_size": 2, "features": str(tmp_path / "out")}
    with pytest.raises(UserError, match=r"no encoded empty caption.* text_encoder=.*, or .* uncond: learned"):
        run_training(TrainStep(**options), tmp_path / "run", Silent())
    run_training(TrainStep(**options, uncond="learned"), tmp_path / "run", Silent())
    assert read_facts(tmp_path / "run").vae_scaling_factor == 0.18215

    encoders = str(write_encoders(tmp_path / "encoders"))
    again = bring_in(tmp_path / "in", tmp_path / "again", text_encoder=encoders, device="cpu")
    empty = load_text_encoder(encoders).encode_each([""])[0]
    torch.testing.assert_close(again.empty_caption(), empty)
    run_training(TrainStep(**options | {"features": str(tmp_path / "again")}), tmp_path / "more", Silent())
    assert len(store) == len(again)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"list_file": "nowhere.json"}, "nowhere.json: cannot be read"),
        ({"vae_features": "nowhere"}, "vae_features: .*nowhere is not a folder"),
        ({"text_features": "partition"}, "samples are missing or damaged|none of 6 samples can be used"),
        ({"vae": "tests"}, "the hub cannot be reached"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, options: dict[str, str], message: str) -> None:
    write_reference(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        bring_in(tmp_path / "in", tmp_path / "out", **options)


def test_a_second_set_of_features_must_be_chosen(tmp_path: Path) -> None:
    write_reference(tmp_path / "in")
    first = tmp_path / "in/img_vae_features_512resolution/noflip"
    second = tmp_path / "in/img_vae_features_256resolution/noflip"
    second.mkdir(parents=True)
    for path in first.rglob("*.npy"):
        target = second / path.relative_to(first)
        target.parent.mkdir(exist_ok=True)
        np.save(target, np.load(path)[:, :4, :4])
    with pytest.raises(UserError, match=r"several sets of features \(img_vae_features_256.*vae_features="):
        bring_in(tmp_path / "in", tmp_path / "out")
    chosen = "img_vae_features_256resolution/noflip"
    assert bring_in(tmp_path / "in", tmp_path / "out", vae_features=chosen).buckets == {(32, 32): 6}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("img_vae_features_512resolution/noflip/3.npy", b"\x80\x04K\x01.", "3.npy is no .npy"),
        ("img_vae_features_512resolution/noflip/a_1.npy", b"", "a_1.npy is no .npy"),
        ("caption_feature_wmask/a_0.npz", b"PK\x03\x04 cut", "a_0.npz is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_reference(tmp_path / "in")
    (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(UserError, match=f"1 of 6 samples are missing or damaged: .*{message}"):
        bring_in(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
