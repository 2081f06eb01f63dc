"""Laws of reading: batches never share memory while they are used, and mirror images come as drawn."""

import gc
import threading
from pathlib import Path

import pytest
import torch
from stores import Source, small_source, write_tiny_store

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.feature_plan import FeaturePlan, PlannedImage
from pixart_core.artifacts.feature_writer import FeatureWriter
from pixart_core.artifacts.features import FeatureStore
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.training.batches import Unconditional, draw_flips
from pixart_core.training.feed import micro_batches
from pixart_core.training.order import BatchOrder


def test_batches_that_are_held_keep_their_values(tmp_path: Path) -> None:
    store = FeatureStore(write_tiny_store(tmp_path))
    orders = [torch.randperm(10, generator=torch.Generator().manual_seed(n)).tolist() for n in range(12)]
    # Only a view of one tensor is held of every batch.
    held = [(store.batch((16, 16), order).text[3:], store.batch((16, 16), order).std[0]) for order in orders]
    for order, (text, std) in zip(orders, held, strict=True):
        fresh = FeatureStore(tmp_path).batch((16, 16), order)
        assert torch.equal(text, fresh.text[3:])
        assert torch.equal(std, fresh.std[0])


def test_memory_of_a_batch_that_is_gone_is_used_again(tmp_path: Path) -> None:
    store = FeatureStore(write_tiny_store(tmp_path))
    batch = store.batch((16, 16), range(8))
    places = batch.text.data_ptr(), batch.mean.data_ptr()
    view = batch.text[1].numpy()
    del batch
    gc.collect()
    second = store.batch((16, 16), range(8))
    assert second.text.data_ptr() != places[0]  # the view holds it
    assert second.mean.data_ptr() == places[1]
    del view
    assert store.batch((16, 16), range(8)).text.data_ptr() == places[0]


def test_threads_read_what_one_reads(tmp_path: Path) -> None:
    small_source(40).extract(tmp_path)
    store, alone = FeatureStore(tmp_path, 16), FeatureStore(tmp_path, 16)
    bucket = next(iter(store.buckets))
    wrong: list[int] = []

    def read(seed: int) -> None:
        for step in range(30):
            generator = torch.Generator().manual_seed(100 * seed + step)
            order = torch.randperm(store.buckets[bucket], generator=generator)[:6].tolist()
            batch = store.batch(bucket, order)
            kept = batch.text.clone(), batch.mean.clone()
            expected = [alone.batch(bucket, [number]) for number in order] if seed == 0 else []
            for row, one in enumerate(expected):
                length = one.text.shape[1]
                same = torch.equal(batch.text[row, :length], one.text[0])
                wrong.extend([] if same and torch.equal(batch.mean[row], one.mean[0]) else [step])
            wrong.extend(
                [] if torch.equal(kept[0], batch.text) and torch.equal(kept[1], batch.mean) else [step]
            )

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("storage", ["int8", "fp16", "fp32"])
def test_long_captions_read_as_short_ones_do(tmp_path: Path, storage: str) -> None:
    # Captions above 32 kB are unpacked one by one, shorter ones together.
    plan = FeaturePlan.open(tmp_path, {}, tables={8: [(8, 8)]}, shard_size=2)
    plan.extend(PlannedImage(f"{n}", f"caption {n}", None, 8, 8, ((8, 8),)) for n in range(3))
    writer = FeatureWriter(tmp_path, plan, storage, first=True)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randn(length, 4096, generator=generator) for length in (1, 20, 2, 11)]
    for shard in writer.missing("text"):
        writer.write_text(shard, [tokens[number] for number in shard.rows])
    for shard in writer.missing("image"):
        moments = {
            name: torch.rand(len(shard.rows), 3, 4, 4, generator=generator) for name in ("mean", "std")
        }
        writer.write_images(shard, [(plan.ids(shard.rows), moments)])
    writer.finish(Card("features", {}, {}, {}))
    store = FeatureStore(tmp_path)
    for order in ([0, 1, 2], [1], [2, 1, 0]):
        batch = store.batch((8, 8), order)
        assert batch.text.shape[1] == max(len(tokens[number + 1]) for number in order)
        for row, number in enumerate(order):
            alone = store.batch((8, 8), [number])
            expected = tokens[number + 1]
            found = batch.text[row, : len(expected)]
            assert torch.equal(found, alone.text[0])
            assert (found - expected).norm() <= {"int8": 0.012, "fp16": 3e-4, "fp32": 0}[
                storage
            ] * expected.norm()
            assert batch.mask[row].sum() == len(expected)
            assert not batch.text[row, len(expected) :].any()


def test_flips_depend_on_seed_step_and_place_alone() -> None:
    whole = draw_flips(0, 3, range(4000))
    assert whole[1000:1010] == draw_flips(0, 3, range(1000, 1010))
    assert abs(sum(whole) - 2000) < 4 * 32  # four standard deviations of 4000 coins
    assert draw_flips(0, 4, range(64)) != whole[:64] != draw_flips(1, 3, range(64))


def test_training_takes_the_mirror_images_that_were_drawn(tmp_path: Path) -> None:
    source = small_source(40, flip=True)
    source.extract(tmp_path)
    store = FeatureStore(tmp_path, 16)
    step = TrainStep(
        features=str(tmp_path),
        model=ModelOptions(),
        max_train_steps=9,
        global_batch_size=8,
        micro_batch_size=4,
    )
    order = BatchOrder(store.buckets, 8, seed=0)
    unconditional = Unconditional(store.empty_caption(), keeps_mask=False)
    seen = set()
    for number in range(4):
        bucket, flips = order[number][0], draw_flips(0, number, range(8))
        batches = micro_batches(
            step, store, order, range(8), number, unconditional=unconditional, null_class=0, patch_size=1
        )
        ids = [
            (name, latents)
            for batch in batches
            for name, latents in zip(batch.ids, batch.latents, strict=True)
        ]
        for (name, latents), mirrored in zip(ids, flips, strict=True):
            moments = source.moments(name, bucket)
            if not moments["std"].any():  # else a draw is added
                assert torch.equal(latents, moments["mean_flipped" if mirrored else "mean"])
                seen.add(mirrored)
    assert seen == {True, False}


def test_stores_with_and_without_noise_mix_in_a_batch(tmp_path: Path) -> None:
    tables = {16: [(16, 16)]}
    images = [PlannedImage(f"id-{n}", "", None, 16, 16, ((16, 16),)) for n in range(12)]
    source = Source(images, tables, shard_size=1, flip=True)  # a shard each: half of them have no std
    source.extract(tmp_path)
    batch = FeatureStore(tmp_path).batch((16, 16), range(12), [n % 3 == 0 for n in range(12)])
    noisy = [bool(std.any()) for std in batch.std]
    assert 0 < sum(noisy) < 12
    for n in range(12):
        moments = source.moments(f"id-{n}", (16, 16))
        ending = "_flipped" if n % 3 == 0 else ""
        assert torch.equal(batch.mean[n], moments[f"mean{ending}"])
        assert torch.equal(batch.std[n], moments[f"std{ending}"])
