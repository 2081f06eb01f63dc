"""Data sets that are read as they stream in; a local one stands for the hub, which tests cannot reach."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from broken_images import encode, noise

from pixart_core.artifacts.manifest import Manifest, read_dropped
from pixart_core.data import streams
from pixart_core.data.images import ImageReader
from pixart_core.data.scan import manifest_for, scan_images
from pixart_core.errors import PixartError, UserError
from pixart_core.progress import Silent
from pixart_core.recipe.data import DataOptions

datasets = pytest.importorskip("datasets")
ROWS, SHARD = 23, 5


@pytest.fixture(autouse=True)
def small_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(streams, "ROWS", SHARD)


@pytest.fixture
def data(tmp_path: Path) -> str:
    """A data set in three parquet files; row 7 has no image, row 11 a broken one."""
    images: list[Any] = [
        {"bytes": encode(noise(20 + row, 20, seed=row), "JPEG" if row % 2 else "PNG"), "path": None}
        for row in range(ROWS)
    ]
    images[7], images[11] = None, {"bytes": b"\xff\xd8 no image", "path": None}
    rows = datasets.Dataset.from_dict(
        {
            "image": images,
            "text": [f"caption {row}" for row in range(ROWS)],
            "style": [row % 3 for row in range(ROWS)],
        },
        features=datasets.Features({
            "image": datasets.Image(), "text": datasets.Value("string"),
            "style": datasets.ClassLabel(names=["flat", "3d", "ink"]),
        }),
    )  # fmt: skip
    (tmp_path / "set").mkdir()
    for number in range(3):
        rows.shard(3, number, contiguous=True).to_parquet(tmp_path / "set" / f"train-{number}.parquet")
    return f"hf:{tmp_path / 'set'}"


def stream(data: str, folder: Path, **options: object) -> Manifest:
    values = {"data": data, "streaming": True, "max_bad_fraction": 0.5, **options}
    return manifest_for(DataOptions(**values), folder, Silent())  # type: ignore[arg-type]


def shards(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "shards").glob("*.tar"))
    }


def test_streamed_images_are_those_of_the_whole_data_set(tmp_path: Path, data: str) -> None:
    whole, dropped = scan_images(DataOptions(data=data, max_bad_fraction=0.5), Silent())  # type: ignore[call-arg]
    streamed = stream(data, tmp_path / "m", label_key="style")
    assert len(streamed.records) == ROWS - 2
    for name in ("id", "width", "height", "caption", "meta", "split"):
        assert [getattr(r, name) for r in streamed.records] == [getattr(r, name) for r in whole.records], name
    assert read_dropped(tmp_path / "m") == dropped
    assert [row["path"] for row in dropped] == ["hf:set/train, row 7", "hf:set/train, row 11"]
    assert streamed.label_names == ("3d", "flat", "ink")
    here, there = ImageReader(tmp_path / "m"), ImageReader("/")
    for one, other in zip(streamed.records, whole.records, strict=True):
        assert here.read_bytes(one) == there.read_bytes(other)
    (tmp_path / "m").rename(tmp_path / "moved")  # the shards move with the manifest
    assert ImageReader(tmp_path / "moved").read(streamed.records[3]).size == (23, 20)


def test_a_limit_reads_no_further_and_a_larger_one_reads_on(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = stream(data, tmp_path / "whole")
    first = stream(data, tmp_path / "m", limit=4)
    assert list(shards(tmp_path / "m")) == ["00000.tar"]
    assert list(first.records) == list(reference.records[:4])
    # 6 and 4 more: rows 5 to 9 lack one, so a third shard is needed.
    assert list(stream(data, tmp_path / "m", limit=10).records) == list(reference.records[:10])
    assert list(shards(tmp_path / "m")) == ["00000.tar", "00001.tar", "00002.tar"]
    stream(data, tmp_path / "m")
    assert shards(tmp_path / "m") == shards(tmp_path / "whole")
    monkeypatch.setattr(streams, "open_split", lambda *_, **__: pytest.fail("asked for what is here"))
    assert list(stream(data, tmp_path / "m", heldout_fraction=0.5).records) != []


def test_a_stream_that_breaks_goes_on_where_it_was(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = stream(data, tmp_path / "whole")
    read: list[int] = []
    image = streams._image
    fails_at = iter((3, 9, 14))
    state = {"next": next(fails_at)}

    def unreliable(value: Any) -> bytes:
        if len(read) == state["next"]:
            state["next"] = next(fails_at, -1)
            raise ConnectionError("the hub\nis gone")
        read.append(1)
        return image(value)

    monkeypatch.setattr(streams, "_image", unreliable)
    for done in (0, 1, 2):
        with pytest.raises(
            PixartError, match=r"reading on after row .* failed .the hub is gone.*run again"
        ) as error:
            stream(data, tmp_path / "m")
        assert "\n" not in str(error.value)
        assert len(shards(tmp_path / "m")) == done
    assert list(stream(data, tmp_path / "m").records) == list(reference.records)
    assert shards(tmp_path / "m") == shards(tmp_path / "whole")
    assert len(read) < ROWS + 3 * SHARD  # never from the beginning


def test_only_hub_data_stream_and_two_streams_do_not_mix(tmp_path: Path, data: str) -> None:
    with pytest.raises(UserError, match="streaming reads hf:ID/split"):
        stream(str(tmp_path), tmp_path / "m")
    stream(data, tmp_path / "m", limit=1)
    (tmp_path / "set").rename(tmp_path / "other")
    with pytest.raises(UserError, match=r"holds the stream of hf:.*/set/train, not of hf:.*/other/train"):
        stream(f"hf:{tmp_path / 'other'}", tmp_path / "m", limit=1)
    with pytest.raises(UserError, match="no place for it here"):
        scan_images(DataOptions(data=data, streaming=True), Silent())  # type: ignore[call-arg]


def test_a_data_set_saved_to_disk_streams_too(tmp_path: Path, data: str) -> None:
    rows = datasets.load_dataset(data.removeprefix("hf:"), split="train")
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    manifest = stream(f"hf:{tmp_path / 'saved'}/train", tmp_path / "m")
    assert [r.caption for r in manifest.records] == [
        f"caption {row}" for row in range(ROWS) if row not in (7, 11)
    ]
