"""Laws of exports and imports: others read what training reads, and nothing changes on the way back."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from pixart_core.artifacts.card import Card, card_for
from pixart_core.artifacts.feature_plan import FeaturePlan, PlannedImage
from pixart_core.artifacts.feature_writer import FeatureWriter
from pixart_core.artifacts.features import FeatureStore
from pixart_core.artifacts.manifest import image_id
from pixart_core.encoders.analytic_vae import build_analytic_vae
from pixart_core.encoders.feature_export import export_features
from pixart_core.encoders.feature_import import import_features
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.features import ExtractFeaturesStep, ImportFeaturesStep

TABLES = {16: ((16, 16), (8, 32)), 32: ((32, 32), (16, 64))}
COUNT = 11
VAE = {
    "name": "vae",
    "source": "vae",
    "hash": "aaa",
    "latent_channels": 3,
    "downsampling": 2,
    "scaling_factor": 0.5,
    "shift_factor": 0.25,
}
TEXT = {"name": "text", "source": "text", "hash": "ttt", "channels": 70}


def write_store(folder: Path, storage: str, flip: bool = True) -> Path:
    """Random features at two resolutions; an image without caption or label, and two with one caption."""
    draws = torch.Generator().manual_seed(1)
    settings = {"flip": flip, "storage": storage}
    plan = FeaturePlan.open(folder, settings, tables=TABLES, shard_size=4)
    plan.extend(
        PlannedImage(
            id=image_id(f"{number}.png"),
            caption="" if number == 3 else f"caption {number % 6}",
            label=None if number == 3 else number % 2,
            height=100 + number,
            width=200,
            buckets=tuple(table[number % 2] for table in TABLES.values()),
        )
        for number in range(COUNT)
    )
    writer = FeatureWriter(folder, plan, storage, first=True)
    for shard in writer.missing("text"):
        writer.write_text(shard, [torch.randn(1 + row % 5, 70, generator=draws) for row in shard.rows])
    for shard in writer.missing("image"):
        height, width = shard.bucket
        names = ["mean", "std", "mean_flipped", "std_flipped"][: 4 if flip else 2]
        shape = (len(shard.rows), 3, height // 2, width // 2)
        moments = {name: torch.rand(shape, generator=draws) for name in names}
        writer.write_images(shard, [(plan.ids(shard.rows), moments)])
    details = {
        "latent_channels": 3,
        "caption_channels": 70,
        "max_tokens": 120,
        "label_names": ["a", "b"],
        "vae": VAE,
        "text_encoder": TEXT,
        "sources": {"data": "/somewhere"},
    }
    assert writer.finish(card_for("features", ExtractFeaturesStep(data="x"), details))
    return folder


def bring_in(source: Path, output: Path, **options: object) -> Path:
    import_features(ImportFeaturesStep.model_validate({"source": str(source), **options}), output, Silent())
    return output


def expected(store: Path) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """What training reads, by (id, resolution)."""
    found = {}
    for resolution in TABLES:
        opened = FeatureStore(store, resolution)
        for bucket, count in opened.buckets.items():
            batch = opened.batch(bucket, range(count))
            mirrored = opened.batch(bucket, range(count), [True] * count) if opened.flips else None
            for row, name in enumerate(batch.ids):
                arrays = {
                    "mean": batch.mean[row],
                    "std": batch.std[row],
                    "text": batch.text[row, batch.mask[row]],
                }
                if mirrored is not None:
                    arrays |= {"mean_flipped": mirrored.mean[row], "std_flipped": mirrored.std[row]}
                plain = {kind: value.numpy() for kind, value in arrays.items()}
                size = np.array([*batch.sizes[row].tolist(), int(batch.labels[row])])
                found[name, resolution] = plain | {"size and label": size}
    return found


def assert_equal_samples(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key, arrays in one.items():
        assert arrays.keys() == other[key].keys()
        for kind, value in arrays.items():
            np.testing.assert_array_equal(value, other[key][kind], err_msg=f"{key} {kind}")


@pytest.mark.parametrize("storage", ["int8", "fp16"])
def test_plain_tarfile_and_numpy_read_the_archives(tmp_path: Path, storage: str) -> None:
    store = write_store(tmp_path / "store", storage)
    result = export_features(store, "webdataset", tmp_path / "out", Silent())
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as archive:
            for entry in archive:
                key, _, kind = entry.name.partition(".")
                samples.setdefault(f"{path.name} {key}", {})[kind] = archive.extractfile(entry).read()
    assert len(samples) == result["samples"] == 2 * COUNT
    found = {}
    for members in samples.values():
        told = json.loads(members.pop("json"))
        arrays = {kind.removesuffix(".npy"): np.load(io.BytesIO(data)) for kind, data in members.items()}
        assert {value.dtype for value in arrays.values()} == {np.dtype("f2" if storage == "fp16" else "f4")}
        label = -1 if told["label"] is None else told["label"]
        size = np.array([told["height"], told["width"], label])
        found[told["id"], told["resolution"]] = arrays | {"size and label": size}
    assert_equal_samples(found, expected(store))


def test_datasets_reads_the_export_with_its_types(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", "int8")
    export_features(store, "hf", tmp_path / "out", Silent())
    rows = datasets.load_from_disk(str(tmp_path / "out"))
    assert rows.features["label"].names == ["a", "b"]
    assert rows.features["mean"].feature.dtype == "float32"
    found = {}
    for row in rows:
        arrays = {
            kind: np.array(row[kind], np.float32).reshape(row["latent_shape"])
            for kind in ("mean", "std", "mean_flipped", "std_flipped")
        }
        arrays["text"] = np.array(row["text"], np.float32).reshape(row["text_shape"])
        size = np.array([row["height"], row["width"], -1 if row["label"] is None else row["label"]])
        found[row["id"], row["resolution"]] = arrays | {"size and label": size}
    assert_equal_samples(found, expected(store))


@pytest.mark.parametrize("to", ["webdataset", "hf"])
@pytest.mark.parametrize("storage", ["int8", "fp16", "fp32"])
def test_nothing_changes_on_the_way_out_and_back(tmp_path: Path, storage: str, to: str) -> None:
    store = write_store(tmp_path / "store", storage, flip=storage != "fp16")
    export_features(store, to, tmp_path / "out", Silent())
    back = bring_in(tmp_path / "out", tmp_path / "back")
    assert_equal_samples(expected(back), expected(store))
    names = {path.name for path in store.glob("*-*.safetensors")}
    assert names == {path.name for path in back.glob("*-*.safetensors")}
    for name in names:  # codes and scales of int8 among them
        if not name.startswith("plan"):
            assert (back / name).read_bytes() == (store / name).read_bytes(), name
    details = Card.read(back, "features").details
    assert (details["vae"], details["text_encoder"], details["label_names"]) == (VAE, TEXT, ["a", "b"])
    empty = [FeatureStore(folder, 16).empty_caption() for folder in (store, back)]
    torch.testing.assert_close(*empty, rtol=0, atol=0)


def test_an_interrupted_export_goes_on_and_an_unfinished_one_is_no_source(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", "int8")
    export_features(store, "webdataset", tmp_path / "out", Silent())
    files = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    kept = sorted((tmp_path / "out").glob("*.tar"))
    (tmp_path / "out/card.json").unlink()
    kept.pop().unlink()
    with pytest.raises(UserError, match="unfinished export; run the export again"):
        bring_in(tmp_path / "out", tmp_path / "back")
    before = [path.stat().st_mtime_ns for path in kept]
    export_features(store, "webdataset", tmp_path / "out", Silent())
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files
    with pytest.raises(UserError, match="holds the export of another store or format"):
        export_features(store, "hf", tmp_path / "out", Silent())


class Harm:
    """Unpickled, it would be seen."""

    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('unpickled')",)


def npy(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def archive(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def foreign_sample(key: str, **changed: bytes) -> dict[str, bytes]:
    mean = np.random.default_rng(len(key)).random((3, 4, 4), np.float32)
    members = {"json": json.dumps({"id": key}).encode(), "mean.npy": npy(mean), "std.npy": npy(mean)}
    members |= {"text.npy": npy(np.ones((3, 5), np.float32))} | changed
    return {f"{key}.{kind}": data for kind, data in members.items() if data}


BROKEN = {
    "cut": ({"mean.npy": npy(np.ones((3, 4, 4), np.float32))[:-9]}, "bytes instead of 192: cut short"),
    "nan": ({"std.npy": npy(np.full((3, 4, 4), np.nan))}, "not finite"),
    "object": ({"text.npy": npy(np.array([Harm()]), allow_pickle=True)}, "holds object"),
    "pickle": ({"text.npy": pickle.dumps(Harm())}, "is no .npy"),
    "missing": ({"text.npy": b""}, "its .text.npy is missing"),
    "shapes": ({"std.npy": npy(np.ones((3, 4, 5)))}, "std has the shape"),
    "empty": ({"text.npy": npy(np.ones((0, 5)))}, "text has the shape"),
    "nojson": ({"json": b"{"}, "its .json is not JSON"),
    "label": ({"json": b'{"id": "x", "label": "cat"}'}, "label is 'cat'"),
}


def test_damaged_samples_are_named_and_left_out_when_asked(tmp_path: Path) -> None:
    members = foreign_sample("good")
    for key, (changed, _) in BROKEN.items():
        members |= foreign_sample(key, **changed)
    archive(tmp_path / "in/a.tar", members)
    build_analytic_vae(1).save_pretrained(tmp_path / "vae")
    options = {"vae": str(tmp_path / "vae")}
    with pytest.raises(UserError, match=r"9 of 10 samples are missing or damaged: .*a.tar, cut: its .mean"):
        bring_in(tmp_path / "in", tmp_path / "refused", **options)
    assert not (tmp_path / "refused").exists()
    store = bring_in(tmp_path / "in", tmp_path / "store", max_bad_fraction=1.0, **options)
    assert FeatureStore(store).buckets == {(8, 8): 1}
    dropped = [json.loads(line) for line in (store / "dropped.jsonl").read_text().splitlines()]
    reasons = {row["path"].split(", ")[1]: row["reason"] for row in dropped}
    for key, (_, reason) in BROKEN.items():
        assert reason in reasons[key]


def test_an_interrupted_import_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_features(write_store(tmp_path / "store", "int8"), "hf", tmp_path / "out", Silent())
    whole = bring_in(tmp_path / "out", tmp_path / "whole")
    write, count = FeatureWriter.write_images, iter(range(10))

    def stopping(self, shard, batches):
        if next(count) == 2:
            raise KeyboardInterrupt
        write(self, shard, batches)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "write_images", stopping)
        with pytest.raises(KeyboardInterrupt):
            bring_in(tmp_path / "out", tmp_path / "back")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "back").glob("*-*.safetensors")}
    back = bring_in(tmp_path / "out", tmp_path / "back")
    assert len(kept) >= 4
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    names = {path.name for path in whole.iterdir()}
    assert names == {path.name for path in back.iterdir()}
    assert all((whole / name).read_bytes() == (back / name).read_bytes() for name in names)


def test_archives_of_others_need_no_more_than_moments_and_tokens(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for key, length in (("one", 3), ("two", 3), ("three", 5)):
        told = b"{}" if key != "two" else b'{"caption": "a named caption"}'
        text = npy(np.full((length, 5), 2.0, np.float16))
        members |= foreign_sample(key, **{"json": told, "text.npy": text})
    archive(tmp_path / "in/deep/a.tar", members)
    build_analytic_vae(1).save_pretrained(tmp_path / "vae")
    store = FeatureStore(bring_in(tmp_path / "in", tmp_path / "store", vae=str(tmp_path / "vae")))
    batch = store.batch((8, 8), range(3))
    assert batch.ids == ["one", "two", "three"]
    assert batch.mask.sum(1).tolist() == [3, 3, 5]
    assert batch.sizes.tolist() == [[8, 8]] * 3
    assert store.details["captions"] == 4  # "" among them
    assert store.details["vae"]["downsampling"] == 2
