"""Laws of the plan of a feature store: what it says is what is stored, and adding data only adds."""

import dataclasses
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from stores import Source, files, small_source

from pixart_core.artifacts.card import CARD, Card
from pixart_core.artifacts.feature_check import verify
from pixart_core.artifacts.feature_index import INDEX
from pixart_core.artifacts.feature_plan import FeaturePlan, PlannedImage
from pixart_core.artifacts.features import FeatureStore
from pixart_core.errors import UserError
from pixart_core.progress import Silent

TABLES = {16: [(16, 16), (8, 24), (24, 8)], 32: [(32, 32)]}


@st.composite
def sources(draw: st.DrawFn) -> list[Source]:
    """The same data, growing: each source holds the images of the one before, in any order, and more."""
    ids = draw(st.lists(st.text(min_size=1, max_size=6).filter(_is_id), unique=True, max_size=24))
    captions = st.sampled_from(["", "a", "a fox", "ein Übermaß", "two\nlines", "\udcff odd bytes"])
    images = [
        PlannedImage(
            id=name,
            caption=draw(captions),
            label=draw(st.none() | st.integers(0, 5)),
            height=draw(st.integers(1, 2**20)),
            width=draw(st.integers(1, 2**20)),
            buckets=(draw(st.sampled_from(TABLES[16])), (32, 32)),
        )
        for name in ids
    ]
    cuts = sorted(draw(st.lists(st.integers(0, len(images)), max_size=2)))
    size, flip = draw(st.integers(1, 5)), draw(st.booleans())
    parts = [draw(st.permutations(images[:cut])) for cut in [*cuts, len(images)]]
    return [Source(part, TABLES, shard_size=size, flip=flip) for part in parts]


def _is_id(text: str) -> bool:
    return "\0" not in text and text.isprintable()


@settings(max_examples=15, deadline=None)
@given(sources())
def test_a_store_that_grows_holds_every_image_with_its_caption(steps: list[Source]) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        before: dict[str, bytes] = {}
        for source in steps:
            source.extract(folder)
            now = files(folder)
            kept = before.keys() - {INDEX, CARD}
            assert {name: now[name] for name in kept} == {name: before[name] for name in kept}
            before = now
        assert verify(folder, Silent()) == []
        for resolution in TABLES:
            check_content(FeatureStore(folder, resolution), steps[-1])


def check_content(store: FeatureStore, source: Source) -> None:
    images = {image.id: image for image in source.images}
    assert len(store) == len(images) == sum(store.buckets.values())
    place = list(source.tables).index(store.resolution)
    for bucket, count in store.buckets.items():
        expected = {image.id for image in source.images if image.buckets[place] == bucket}
        assert set(store.sample_ids(bucket)) == expected
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
        for flipped in (None, [number % 2 == 0 for number in order] if source.flip else None):
            batch = store.batch(bucket, order, flipped)
            for row, name in enumerate(batch.ids):
                image = images[name]
                moments = source.moments(name, bucket)
                ending = "_flipped" if flipped is not None and flipped[row] else ""
                assert torch.equal(batch.mean[row], moments[f"mean{ending}"])
                assert torch.equal(batch.std[row], moments[f"std{ending}"])
                assert torch.equal(batch.text[row][batch.mask[row]], source.tokens(image.caption))
                assert not batch.text[row][~batch.mask[row]].any()
                assert batch.labels[row] == (-1 if image.label is None else image.label)
                assert batch.sizes[row].tolist() == [image.height, image.width]
            assert batch.ids == [store.sample_ids(bucket)[number] for number in order]


def test_each_distinct_caption_is_stored_once_for_all_resolutions(tmp_path: Path) -> None:
    source = small_source()
    source.extract(tmp_path)
    texts = [load_file(path) for path in sorted(tmp_path.glob("text-*"))]
    captions = {image.caption for image in source.images} | {""}
    assert sum(len(text["xxh3"]) for text in texts) == len(captions)
    assert sum(len(text["row"]) for text in texts) == sum(len(source.tokens(c)) for c in captions)
    store = FeatureStore(tmp_path, 32)
    assert torch.equal(store.empty_caption(), source.tokens(""))
    for bucket in store.buckets:
        numbers = store.caption_numbers(bucket)
        wanted = {image.id: source.tokens(image.caption) for image in source.images}
        found = zip(store.sample_ids(bucket), store.text(numbers.tolist()), strict=True)
        assert all(torch.equal(states, wanted[name]) for name, states in found)


def test_shards_hold_the_same_rows_at_every_resolution(tmp_path: Path) -> None:
    plan = small_source().open(tmp_path).plan
    rows = {shard.name: list(shard.rows) for shard in plan.shards("image")}
    for number in range(2):
        assert rows[f"image-16x16-0000{number}.safetensors"] == rows[f"image-32x32-0000{number}.safetensors"]
    assert sorted(
        row for name, part in rows.items() if "16x16" in name or "8x24" in name for row in part
    ) == [*range(14)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": "other"}, "1 of the images in .* have another caption now, e.g. id-3"),
        ({"label": 7}, "have another label now"),
        ({"width": 1}, "have another size now"),
        ({"buckets": ((16, 16), (32, 32))}, "have another bucket now"),
        ({"digest": f"{8:016x}"}, "1 of the images in .* have another content now, e.g. id-3"),
        (None, "1 of 14 images that .* was planned with are gone from the data, e.g. id-3"),
    ],
)
def test_data_that_changed_is_refused(tmp_path: Path, change: dict[str, object] | None, message: str) -> None:
    small_source().extract(tmp_path)
    before = files(tmp_path)
    source = small_source(20)
    changed = [] if change is None else [dataclasses.replace(source.images[3], **change)]
    source.images[3:4] = changed
    with pytest.raises(UserError, match=message):
        source.open(tmp_path)
    assert files(tmp_path) == before


def test_a_content_that_is_unknown_once_is_no_change(tmp_path: Path) -> None:
    small_source().extract(tmp_path)
    source = small_source(20)
    source.images[3] = dataclasses.replace(source.images[3], digest=None)
    source.images[19] = dataclasses.replace(source.images[19], digest=None)
    source.extract(tmp_path)
    assert load_file(tmp_path / "plan-00001.safetensors")["content"].tolist() == [*range(15, 20), 0]
    small_source(20).open(tmp_path)
    for name in ("plan-00000.safetensors", "plan-00001.safetensors"):  # as they were before the column
        columns = load_file(tmp_path / name)
        del columns["content"]
        with safe_open(tmp_path / name, "numpy") as file:
            save_file(columns, tmp_path / name, file.metadata())
    source.images[3] = dataclasses.replace(source.images[3], digest="f" * 16)
    assert FeaturePlan.load(tmp_path).extend(source.images) == 0


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    small_source().extract(tmp_path)
    for options, named in (
        ({"flip": True}, "flip: false, now true"),
        ({"shard_size": 4}, "shard_size: 3, now 4"),
    ):
        with pytest.raises(UserError, match=named):
            small_source(**options).open(tmp_path)
    with pytest.raises(UserError, match="bucket 8x8 is given twice, or for two resolutions"):
        FeaturePlan.open(tmp_path / "new", {}, tables={8: [(8, 8)], 9: [(8, 8)]}, shard_size=1)
    source = small_source()
    source.images.append(source.images[0])
    with pytest.raises(UserError, match="two images have the id id-0"):
        source.open(tmp_path / "new")


def test_a_store_of_several_resolutions_asks_for_one(tmp_path: Path) -> None:
    small_source().extract(tmp_path)
    with pytest.raises(UserError, match=r"holds several resolutions \(16, 32\); choose one"):
        FeatureStore(tmp_path)
    with pytest.raises(UserError, match="holds no resolution 64, only 16, 32"):
        FeatureStore(tmp_path, 64)
    store = FeatureStore(tmp_path, 32)
    assert store.buckets == {(16, 48): 5, (32, 32): 9}
    with pytest.raises(UserError, match="holds no mirror images"):
        store.batch((32, 32), [0], [True])


@pytest.mark.parametrize(("made", "lacks"), [("text", "image"), ("image", "text")])
def test_a_part_that_is_missing_is_named(tmp_path: Path, made: str, lacks: str) -> None:
    source = small_source()
    writer = source.open(tmp_path)
    for shard in writer.missing(made):  # type: ignore[arg-type]
        source.write(writer, shard)
    assert not writer.finish(Card("features", {}, {}, {}))
    with pytest.raises(UserError, match=rf"is unfinished: (\d+) of \1 {lacks} shards missing"):
        FeatureStore(tmp_path, 16)
    part = files(tmp_path)
    source.extract(tmp_path)
    assert part.items() - {(INDEX, part[INDEX])} <= files(tmp_path).items()


def test_more_data_makes_a_finished_store_unfinished_until_it_is_there(tmp_path: Path) -> None:
    small_source().extract(tmp_path)
    source = small_source(20)
    writer = source.open(tmp_path)
    with pytest.raises(UserError, match="is unfinished: 6 of 16 image shards missing"):
        FeatureStore(tmp_path, 16)
    assert 0 < sum(len(shard.rows) for shard in writer.missing("image")) == 2 * 6
    source.extract(tmp_path)
    assert len(FeatureStore(tmp_path, 16)) == 20


def test_stores_of_other_formats_are_refused(tmp_path: Path) -> None:
    old = {"format": 1, "plan": "0123456789abcdef"}
    (tmp_path / INDEX).write_text(json.dumps(old) + "\n")
    Card("features", {}, {}, {}).write(tmp_path)
    for attempt in (FeatureStore, small_source().open, lambda folder: verify(folder, Silent())):
        with pytest.raises(UserError, match=r"earlier pixart \(feature store of format 1, now 2\)"):
            attempt(tmp_path)
