"""The cache of features: what was appended is there, whatever else was killed, cut off or damaged."""

from pathlib import Path

import numpy as np
import pytest

from pixart_core.artifacts.image_records import content_digest
from pixart_core.errors import PixartError, UserError
from pixart_core.evaluation.feature_cache import CachedRows, FeatureCache


def digests(*numbers: int) -> list[str]:
    return [content_digest(str(number).encode()) for number in numbers]


def rows(*numbers: int) -> np.ndarray:
    return np.array([[number, number / 3, -number] for number in numbers], dtype=np.float32)


def opened(root: Path) -> FeatureCache:
    return FeatureCache(root, "net@1", 3)


def only_file(root: Path) -> Path:
    (path,) = (root / "net@1").iterdir()
    return path


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.append(digests(1, 2, 3), rows(1, 2, 3))
    cache.append(digests(4), rows(4))
    for again in (cache, opened(tmp_path)):
        np.testing.assert_array_equal(again.gather(digests(4, 1, 1, 3)), rows(4, 1, 1, 3).astype(np.float64))
        assert digests(2)[0] in again
        assert digests(9)[0] not in again
    np.testing.assert_array_equal(CachedRows(cache, digests(3, 2, 1)).block(1, 3), rows(2, 1))


def test_the_first_row_of_an_image_stays(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.append(digests(1, 1), rows(1, 5))
    cache.append(digests(1, 2), rows(7, 2))
    np.testing.assert_array_equal(opened(tmp_path).gather(digests(1, 2)), rows(1, 2))


def test_a_frame_cut_off_anywhere_is_absent_and_the_ones_before_it_are_there(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.append(digests(1, 2), rows(1, 2))
    path = only_file(tmp_path)
    first = path.stat().st_size
    cache.append(digests(3, 4), rows(3, 4))
    whole = path.read_bytes()
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        again = opened(tmp_path)
        assert len(again) == 2, length
        np.testing.assert_array_equal(again.gather(digests(2, 1)), rows(2, 1))


@pytest.mark.parametrize("at", [0, 5, 10, 20, 40])
def test_a_flipped_byte_makes_its_frame_absent(tmp_path: Path, at: int) -> None:
    opened(tmp_path).append(digests(1, 2), rows(1, 2))
    path = only_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[at] ^= 255
    path.write_bytes(data)
    cache = opened(tmp_path)
    assert len(cache) == 0
    cache.append(digests(1), rows(1))
    np.testing.assert_array_equal(opened(tmp_path).gather(digests(1)), rows(1))


def test_two_runs_append_side_by_side(tmp_path: Path) -> None:
    a, b = opened(tmp_path), opened(tmp_path)
    a.append(digests(1), rows(1))
    b.append(digests(2), rows(2))
    a.append(digests(3), rows(3))
    b.refresh()
    np.testing.assert_array_equal(b.gather(digests(3, 2, 1)), rows(3, 2, 1))


def test_other_networks_have_caches_of_their_own(tmp_path: Path) -> None:
    opened(tmp_path).append(digests(1), rows(1))
    assert len(FeatureCache(tmp_path, "net@2", 3)) == 0


def test_a_full_disk_is_told_and_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = opened(tmp_path)
    cache.append(digests(1), rows(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(PixartError, match="No space left on device"):
        cache.append(digests(2), rows(2))
    monkeypatch.undo()
    assert len(opened(tmp_path)) == 1


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PixartError, match="not finite"):
        opened(tmp_path).append(digests(1), np.full((1, 3), np.nan, dtype=np.float32))
    assert len(opened(tmp_path)) == 0


def test_a_cache_that_cannot_be_made_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache"):
        FeatureCache(tmp_path / "file", "net@1", 3)
