"""Laws of the feature store: what is written comes back, resumes, and says what is wrong with it."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pixart_core.artifacts.card import CARD, Card
from pixart_core.artifacts.feature_index import INDEX
from pixart_core.artifacts.feature_packing import Storage
from pixart_core.artifacts.feature_plan import FeaturePlan, PlannedImage
from pixart_core.artifacts.feature_writer import FeatureWriter
from pixart_core.artifacts.features import FeatureStore
from pixart_core.artifacts.quantise import dequantise, quantise
from pixart_core.errors import PixartError, UserError

DETAILS = {
    "latent_channels": 3,
    "caption_channels": 96,
    "max_tokens": 120,
    "label_names": ["a", "b"],
    "vae": {"scaling_factor": 1.5, "shift_factor": 0.0, "downsampling": 2},
}


def moments(count: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(count, 3, height, width, generator=generator)
    return mean, torch.rand(count, 3, height, width, generator=generator)


def captions(count: int, width: int = 96) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1 + 3 * (i % 4), width, generator=generator) for i in range(count)]


BUCKETS = {(64, 64): (5, 5), (32, 96): (2, 8)}  # pixels: latent
TABLES = {64: list(BUCKETS)}


def images() -> list[PlannedImage]:
    return [
        PlannedImage(f"id{n}{b}", f"text {n % 7}" if n % 7 else "", n % 2, n + 10, n + 20, (bucket,))
        for b, bucket in enumerate(BUCKETS)
        for n in range(8)
    ]


def open_writer(folder: Path, storage: Storage = "int8", **settings: object) -> FeatureWriter:
    plan = FeaturePlan.open(folder, {"storage": storage} | settings, tables=TABLES, shard_size=5)
    plan.extend(images())
    return FeatureWriter(folder, plan, storage, first=True)


def write_store(folder: Path, storage: Storage = "int8", noise: float = 1.0) -> FeatureWriter:
    writer = open_writer(folder, storage)
    texts = captions(7)
    for shard in writer.missing("text"):
        writer.write_text(shard, [texts[number] for number in shard.rows])
    for shard in writer.missing("image"):
        assert shard.bucket is not None
        number = int(shard.name[-17:-12])
        mean, std = moments(len(shard.rows), *BUCKETS[shard.bucket], seed=number)
        ids = writer.plan.ids(shard.rows)
        batches = [
            (ids[a : a + 2], {"mean": mean[a : a + 2], "std": noise * std[a : a + 2]}) for a in (0, 2, 4)
        ]
        writer.write_images(shard, [batch for batch in batches if batch[0]])
    assert writer.finish(Card("features", {}, {}, DETAILS))
    return writer


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("storage", "tolerance"), [("fp32", 0.0), ("fp16", 2e-3), ("int8", 2e-2)])
def test_a_batch_across_shards_holds_what_was_written(
    tmp_path: Path, storage: Storage, tolerance: float
) -> None:
    write_store(tmp_path, storage)
    store = FeatureStore(tmp_path)
    batch = store.batch((64, 64), [6, 0, 4])

    first, second = moments(5, 5, 5, seed=0), moments(3, 5, 5, seed=1)
    for found, one, two in ((batch.mean, first[0], second[0]), (batch.std, first[1], second[1])):
        torch.testing.assert_close(found, torch.stack([two[1], one[0], one[4]]), atol=tolerance, rtol=0)
    texts = captions(7)
    for row, number in enumerate((6, 0, 4)):
        length = len(texts[number])
        torch.testing.assert_close(batch.text[row, :length], texts[number], atol=tolerance, rtol=0)
        assert batch.mask[row].tolist() == [True] * length + [False] * (batch.mask.shape[1] - length)
        assert not batch.text[row, length:].any()
    assert batch.text.shape[1] == max(len(texts[number]) for number in (6, 0, 4))
    assert batch.ids == ["id60", "id00", "id40"]
    assert batch.labels.tolist() == [0, 0, 0]
    assert batch.sizes.tolist() == [[16, 26], [10, 20], [14, 24]]
    assert batch.mean.dtype == batch.text.dtype == torch.float32


def test_a_batch_without_captions_reads_none_and_is_the_same_else(tmp_path: Path) -> None:
    write_store(tmp_path)
    for shard in tmp_path.glob("text-*.safetensors"):
        size = shard.stat().st_size
        shard.write_bytes(b"\xff" * size)  # damaged: whoever opens it fails
    store = FeatureStore(tmp_path)
    with pytest.raises(UserError, match="damaged"):
        store.batch((64, 64), [6, 0, 4])
    batch = store.batch((64, 64), [6, 0, 4], text=False)
    assert batch.text.shape == (3, 0, store.caption_channels)
    assert batch.mask.shape == (3, 0)
    assert batch.ids == ["id60", "id00", "id40"]
    torch.testing.assert_close(batch.mean[1], moments(5, 5, 5, seed=0)[0][0], atol=2e-2, rtol=0)


def test_the_store_tells_its_buckets_and_ids(tmp_path: Path) -> None:
    write_store(tmp_path)
    store = FeatureStore(tmp_path)
    assert store.buckets == {(32, 96): 8, (64, 64): 8}
    assert len(store) == 16
    assert store.sample_ids((32, 96)) == [f"id{n}1" for n in range(8)]
    assert (store.scaling_factor, store.vae_downsampling, store.label_names) == (1.5, 2, ("a", "b"))
    torch.testing.assert_close(store.empty_caption(), captions(1)[0], atol=2e-2, rtol=0)
    with pytest.raises(IndexError):
        store.batch((64, 64), [8])


def test_a_store_travels_to_other_processes(tmp_path: Path) -> None:
    write_store(tmp_path)
    store = FeatureStore(tmp_path)
    store.batch((64, 64), [0])
    data = pickle.dumps(store)
    assert len(data) < 1000
    assert torch.equal(pickle.loads(data).batch((64, 64), [3]).mean, store.batch((64, 64), [3]).mean)


def test_a_vae_without_noise_stores_no_std(tmp_path: Path) -> None:
    write_store(tmp_path / "noisy")
    write_store(tmp_path / "still", noise=3e-7)
    name = "image-64x64-00000.safetensors"
    assert (tmp_path / "still" / name).stat().st_size < 0.7 * (tmp_path / "noisy" / name).stat().st_size
    assert not FeatureStore(tmp_path / "still").batch((64, 64), [0, 7]).std.any()


@pytest.mark.parametrize("exponent", [-30, -12, 0, 12, 30])
def test_int8_keeps_a_group_within_half_a_step_at_any_magnitude(exponent: int) -> None:
    values = torch.randn(50, 150, generator=torch.Generator().manual_seed(0)) * 2.0**exponent
    codes, scale = quantise(values)
    assert codes.shape == values.shape
    assert scale.shape == (50, 3)
    steps = scale.float().repeat_interleave(64, 1)[:, :150]
    # The largest value of a group may lose another half step to the rounding of the scale.
    assert ((dequantise(codes, scale) - values).abs() <= 0.8 * steps).all()


def test_the_writer_reports_the_error_of_what_is_read_back(tmp_path: Path) -> None:
    errors = write_store(tmp_path).errors()
    mean = torch.cat([moments(5, 5, 5, seed=0)[0], moments(3, 5, 5, seed=1)[0]])
    found = FeatureStore(tmp_path).batch((64, 64), range(8)).mean
    assert errors["mean"] == pytest.approx(((found - mean).norm() / mean.norm()).item(), rel=0.1)
    assert 0 < errors["token"] < 0.01


@pytest.mark.parametrize("cut", range(9))
def test_a_killed_writer_resumes_to_the_same_bytes(tmp_path: Path, cut: int) -> None:
    write_store(tmp_path / "whole")
    whole = files(tmp_path / "whole")
    # What a kill leaves: some shards, an index with a cut line, a partial file, no card.
    names = [json.loads(line)["name"] for line in whole[INDEX].decode().splitlines()[1:]]
    assert names[0] == "plan-00000.safetensors"
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in names[: cut // 2 + 1]:
        (killed / name).write_bytes(whole[name])
    lines = whole[INDEX].splitlines(keepends=True)
    (killed / INDEX).write_bytes(
        b"".join(lines[: cut // 2 + 1]) + (lines[cut // 2 + 1][:9] if cut % 2 else b"")
    )
    (killed / f".{names[0]}.123.partial").write_bytes(b"half")

    write_store(killed)
    assert files(killed) == whole


def test_shards_that_are_there_are_not_written_again(tmp_path: Path) -> None:
    write_store(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    write_store(tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")} == before


def test_features_of_other_options_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path)
    with pytest.raises(UserError, match=r"with other settings \(storage: \"int8\", now \"fp16\"\)"):
        open_writer(tmp_path, "fp16")


def test_values_that_a_storage_cannot_hold_are_an_error(tmp_path: Path) -> None:
    writer = open_writer(tmp_path, "fp16")
    with pytest.raises(PixartError, match="token is not finite in fp16"):
        writer.write_text(writer.missing("text")[0], [torch.full((1, 8), 1e6)] * 5)


def test_a_broken_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        FeatureStore(tmp_path / "nowhere")
    write_store(tmp_path / "a")
    shard = tmp_path / "a" / "text-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"text-00001\.safetensors has \d+ bytes instead of"):
        FeatureStore(tmp_path / "a")
    shard.unlink()
    with pytest.raises(UserError, match=r"text-00001\.safetensors is gone"):
        FeatureStore(tmp_path / "a")
    write_store(tmp_path / "a")
    FeatureStore(tmp_path / "a")
    (tmp_path / "a" / CARD).unlink()
    with pytest.raises(UserError, match="unfinished"):
        FeatureStore(tmp_path / "a")
