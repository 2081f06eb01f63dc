"""Perceptual hashes and the indexes that find what came before: against direct computation."""

import io

import numpy as np
import pytest
from broken_images import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from pixart_core.data.perceptual import COLOUR_TOLERANCE, Looks, NearIndex, look_of, unpack_looks
from pixart_core.data.seen_before import SeenBefore


def picture(seed: int, size: int = 200) -> Image.Image:
    """A smooth random picture with a few edges, as photographs have."""
    values = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC)


def distance(one: Image.Image, other: Image.Image) -> int:
    looks = unpack_looks([look_of(one) or b"", look_of(other) or b""])
    return int(np.bitwise_count(looks["hash"][0] ^ looks["hash"][1]))


def test_the_hash_is_the_sign_of_the_low_frequencies() -> None:
    """Against cosines written out: bit i is set where the coefficient is above the median."""
    image = picture(3)
    small = image.resize((32, 32), Image.Resampling.LANCZOS, reducing_gap=2.0).convert("L")
    grey = np.asarray(small, np.float64)
    place, frequency = np.arange(32), np.arange(8)
    cosines = np.cos(np.pi * frequency[:, None] * (2 * place + 1) / 64)
    low = cosines @ grey @ cosines.T
    expected = "".join("1" if value > np.median(low) else "0" for value in low.reshape(-1))
    hash_ = unpack_looks([look_of(image) or b""])["hash"][0]
    assert f"{int(hash_):064b}" == expected


@pytest.mark.parametrize("seed", range(4))
def test_a_picture_stays_near_itself_and_far_from_others(seed: int) -> None:
    image = picture(seed)
    jpeg = Image.open(io.BytesIO(encode(image, "JPEG", quality=60))).convert("RGB")
    for changed in (jpeg, image.resize((90, 110)), image.filter(ImageFilter.GaussianBlur(1))):
        assert distance(image, changed) <= 4
    for other in range(4, 12):
        assert distance(image, picture(other)) > 11


def test_flat_pictures_have_no_look_and_colours_tell_shapes_apart() -> None:
    assert look_of(Image.new("RGB", (50, 60), (10, 20, 30))) is None
    red, blue = (Image.new("RGB", (64, 64), "white") for _ in range(2))
    red.paste((220, 40, 40), (10, 10, 50, 40))
    grey = red.convert("L").getpixel((20, 20))
    assert isinstance(grey, int)
    blue.paste((40, 40, 255), (10, 10, 50, 40))
    looks = unpack_looks([look_of(red) or b"", look_of(blue) or b""])
    index = NearIndex(11)
    index.add(looks[:1], np.array([0]))
    assert distance(red, blue) <= 11
    assert index.find(looks).tolist() == [0, -1]


def near_pairs(looks: np.ndarray, limit: int) -> list[int]:
    """One by one: the first kept record that is like each, -1 if it is kept."""
    first = [-1] * len(looks)
    for this in range(len(looks)):
        for before in range(this):
            bits = bin(int(looks["hash"][this]) ^ int(looks["hash"][before])).count("1")
            colours = np.abs(looks["colours"][this].astype(int) - looks["colours"][before]).max()
            if first[before] < 0 and bits <= limit and colours <= COLOUR_TOLERANCE:
                first[this] = before
                break
    return first


def random_looks(count: int, seed: int) -> np.ndarray:
    """Many of them near earlier ones, in hash and colour."""
    rng = np.random.default_rng(seed)
    looks = np.zeros(count, Looks)
    for number in range(count):
        looks["hash"][number] = rng.integers(0, 2**64, dtype=np.uint64)
        looks["colours"][number] = rng.integers(0, 256, 12)
        if number and rng.random() < 0.6:
            model = looks[rng.integers(number)].copy()
            for bit in rng.integers(0, 64, rng.integers(0, 12)):
                model["hash"] ^= np.uint64(1) << np.uint64(bit)
            shift = rng.integers(-30, 31, 12) if rng.random() < 0.3 else 0
            model["colours"] = np.clip(model["colours"].astype(int) + shift, 0, 255)
            looks[number] = model
    return looks


@pytest.mark.parametrize("limit", [0, 3, 4, 7, 11])
@pytest.mark.parametrize("block", [1, 7, 400])
def test_the_index_finds_what_comparing_one_by_one_finds(
    limit: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixart_core.data.perceptual._BRUTE", 10)  # so that bands are searched
    monkeypatch.setattr("pixart_core.data.perceptual._PAIRS", 50)
    looks = random_looks(160, seed=limit)
    index = NearIndex(limit)
    found: list[int] = []
    for start in range(0, len(looks), block):
        part = looks[start : start + block].copy()
        found += index.first_kept(part, np.arange(start, start + len(part))).tolist()
    expected = near_pairs(looks, limit)
    assert found == expected
    assert any(first >= 0 for first in expected) or limit == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=12))
def test_seen_before_is_a_dictionary_of_first_numbers(calls: list[list[int]]) -> None:
    seen, first, number = SeenBefore(), {}, 0
    for keys in calls:
        numbers = list(range(number, number + len(keys)))
        number += len(keys)
        expected = []
        for key, own in zip(keys, numbers, strict=True):
            expected.append(first.get(key, -1))
            first.setdefault(key, own)
        found = seen.first(np.array(keys, np.uint64), np.array(numbers, np.int64))
        assert found.tolist() == expected
