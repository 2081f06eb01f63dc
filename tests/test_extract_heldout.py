"""Features of the images that are kept out of training: as any others, of the other images."""

from pathlib import Path

import pytest
from extraction import files, make_step, write_encoders, write_pictures

from pixart_core.artifacts.features import FeatureStore
from pixart_core.artifacts.manifest import read_manifest
from pixart_core.encoders.extract import run_extraction
from pixart_core.encoders.feature_repair import RepairOptions, repair_features
from pixart_core.errors import UserError
from pixart_core.progress import Silent


def ids(store: FeatureStore) -> set[str]:
    return {name for bucket in store.buckets for name in store.sample_ids(bucket)}


def test_held_out_images_get_features_of_their_own(tmp_path: Path) -> None:
    data, encoders = write_pictures(tmp_path / "data", range(30)), write_encoders(tmp_path / "encoders")
    step = make_step(data, encoders, heldout_fraction=0.3)
    heldout = make_step(data, encoders, heldout_fraction=0.3, split="heldout")
    run_extraction(step, tmp_path / "train", Silent())
    run_extraction(heldout, tmp_path / "heldout", Silent())
    stores = {split: FeatureStore(tmp_path / split) for split in ("train", "heldout")}
    manifest = read_manifest(tmp_path / "train/manifest")
    for split, store in stores.items():
        assert ids(store) == {record.id for record in manifest.split(split)}
        assert store.label_names == stores["train"].label_names
    assert ids(stores["heldout"])
    assert not ids(stores["train"]) & ids(stores["heldout"])

    before = files(tmp_path / "heldout")
    shard = next((tmp_path / "heldout").glob("image-*"))
    shard.write_bytes(shard.read_bytes()[:-8])
    assert repair_features(tmp_path / "heldout", RepairOptions(), Silent())["repaired"] == [shard.name]
    assert files(tmp_path / "heldout") == before


def test_the_splits_do_not_mix_in_one_store(tmp_path: Path) -> None:
    data, encoders = write_pictures(tmp_path / "data", range(12)), write_encoders(tmp_path / "encoders")
    step = make_step(data, encoders, heldout_fraction=0.3)
    run_extraction(step, tmp_path / "store", Silent())
    before = files(tmp_path / "store")
    with pytest.raises(UserError):
        run_extraction(step.model_copy(update={"split": "heldout"}), tmp_path / "store", Silent())
    assert files(tmp_path / "store") == before
    with pytest.raises(UserError, match="no images are held out"):
        run_extraction(make_step(data, encoders, split="heldout"), tmp_path / "none", Silent())
