"""Laws of checking a feature store: damage anywhere is found, named, and mended by making only it again."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import files, small_source

from pixart_core.artifacts.card import CARD
from pixart_core.artifacts.feature_check import discard, verify
from pixart_core.artifacts.feature_files import map_columns
from pixart_core.artifacts.feature_index import INDEX
from pixart_core.artifacts.features import FeatureStore
from pixart_core.errors import UserError
from pixart_core.progress import Silent

SOURCE = small_source(flip=True)
PLAN = "plan-00000.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    SOURCE.extract(folder)
    return files(folder)


@pytest.fixture
def folder(whole: dict[str, bytes], tmp_path: Path) -> Path:
    restore(tmp_path, whole)
    return tmp_path


def restore(folder: Path, content: dict[str, bytes]) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, data in content.items():
        (folder / name).write_bytes(data)


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_a_store_that_is_whole_has_no_damage(folder: Path) -> None:
    lines: list[str] = []

    class Listener(Silent):
        def say(self, message: str) -> None:
            lines.append(message)

    assert verify(folder, Listener()) == []
    assert lines[0].startswith(f"checked {len(files(folder)) - 2} files, ")
    assert lines[0].endswith("MB/s")


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_a_flipped_bit_anywhere_is_named_and_mended(
    whole: dict[str, bytes], tmp_path: Path, data: st.DataObject
) -> None:
    restore(tmp_path, whole)
    name = data.draw(st.sampled_from(sorted(whole)))
    flip(tmp_path / name, data.draw(st.integers(0, len(whole[name]) - 1)), data.draw(st.integers(0, 7)))
    damages = verify(tmp_path, Silent())
    # A damaged line takes what it names along.
    named = {damage.shard for damage in damages}
    assert name in named
    assert name == INDEX or named == {name}
    discard(tmp_path, damages)
    with pytest.raises(UserError):
        FeatureStore(tmp_path, 16)
    SOURCE.extract(tmp_path)
    assert files(tmp_path) == whole


def test_damaged_samples_are_named(folder: Path) -> None:
    plan_ids = {image.id: image for image in SOURCE.images}
    shard = "image-32x32-00001.safetensors"
    file = map_columns(folder / shard)
    ids = [row.tobytes().rstrip(b"\0").decode() for row in file.columns["id"]]
    assert set(ids) < set(plan_ids)
    flip(folder / shard, file.starts["row"] + file.columns["row"].shape[1] + 5)
    flip(folder / shard, file.starts["row"] + 2 * file.columns["row"].shape[1])
    text = map_columns(folder / "text-00001.safetensors")
    flip(folder / "text-00001.safetensors", text.starts["row"])
    first, second = verify(folder, Silent())
    assert (first.shard, first.samples) == ("text-00001.safetensors", ("3",))
    assert (second.shard, second.samples) == (shard, tuple(ids[1:3]))
    assert str(second) == f"{shard}: 2 of 3 samples differ from what was written ({ids[1]}, {ids[2]})"


def test_a_wrong_id_is_named_by_the_id_that_was_planned(folder: Path) -> None:
    shard = "image-16x16-00000.safetensors"
    file = map_columns(folder / shard)
    expected = file.columns["id"][2].tobytes().rstrip(b"\0").decode()
    flip(folder / shard, file.starts["id"] + 2 * file.columns["id"].shape[1])
    (damage,) = verify(folder, Silent())
    assert damage.samples == (expected,)


def test_everything_that_is_wrong_is_told_at_once(folder: Path, whole: dict[str, bytes]) -> None:
    (folder / "text-00000.safetensors").unlink()
    shard = folder / "image-16x16-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    (folder / "image-64x64-00000.safetensors").write_bytes(b"foreign")
    lines = (folder / INDEX).read_bytes().splitlines(keepends=True)
    lines[-2] = b"#" + lines[-2]
    (folder / INDEX).write_bytes(b"".join(lines))
    damages = {damage.shard: damage.reason for damage in verify(folder, Silent())}
    assert damages[INDEX] == f"damaged in line {len(lines) - 1}; what it names counts as not made"
    assert damages["text-00000.safetensors"] == "is gone"
    size = len(whole[shard.name])
    assert damages[shard.name] == f"has {size - 3} bytes instead of {size}"
    assert damages["image-64x64-00000.safetensors"] == "does not belong to the store"
    assert damages["image-32x32-00002.safetensors"] == "is not in the index of a finished store"
    assert len(damages) == 5


def test_only_damaged_shards_are_made_again(folder: Path, whole: dict[str, bytes]) -> None:
    broken = ["text-00001.safetensors", "image-16x48-00000.safetensors"]
    for name in broken:
        flip(folder / name, len(whole[name]) - 1)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*-0*.safetensors")}
    discard(folder, verify(folder, Silent()))
    writer = SOURCE.open(folder)
    assert [shard.name for kind in ("text", "image") for shard in writer.missing(kind)] == broken
    SOURCE.extract(folder)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*-0*.safetensors")}
    assert {name for name in after if after[name] != before[name]} == set(broken)
    assert files(folder) == whole


def test_a_store_that_is_not_finished_can_be_checked(folder: Path, whole: dict[str, bytes]) -> None:
    (folder / CARD).unlink()
    (folder / INDEX).write_bytes(b"".join(whole[INDEX].splitlines(keepends=True)[:5]))
    assert verify(folder, Silent()) == []
    name = random.Random(0).choice(["text-00000.safetensors", "text-00001.safetensors"])
    flip(folder / name, 300)
    assert [damage.shard for damage in verify(folder, Silent())] == [name]


def test_a_lost_plan_is_made_again_only_from_the_same_data(folder: Path, whole: dict[str, bytes]) -> None:
    flip(folder / PLAN, 500)
    discard(folder, verify(folder, Silent()))
    other = small_source(flip=True)
    other.images[3], other.images[4] = other.images[4], other.images[3]
    with pytest.raises(UserError, match="no longer gives the same plan"):
        other.extract(folder)
    SOURCE.extract(folder)
    assert files(folder) == whole


def test_what_cannot_be_made_again_is_told(folder: Path) -> None:
    small_source(20, flip=True).extract(folder)
    flip(folder / PLAN, 500)
    damages = verify(folder, Silent())
    assert {damage.shard for damage in damages} == {PLAN}
    with pytest.raises(UserError, match="one of several plans and cannot be made again"):
        discard(folder, damages)


def test_a_folder_without_a_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no feature store"):
        verify(tmp_path, Silent())
