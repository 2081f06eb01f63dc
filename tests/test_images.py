"""Decoding rules and geometry."""

import dataclasses
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from broken_images import encode, noise, unusable
from PIL import Image

from pixart_core.artifacts.manifest import ImageRecord
from pixart_core.data.images import ImageReader, UnusableImageError, decode_image, resize_and_crop
from pixart_core.data.tars import index_tar
from pixart_core.errors import UserError

REASONS = {
    "empty.png": "empty file",
    "text.jpg": "not an image",
    "cut.png": "truncated",
    "cut.jpg": "truncated",
    "header-only.png": "not an image",
    "flipped.png": "damaged",
    "bomb.png": "pixels",
    "float.tif": "floating-point",
}


def pixel(data: bytes, x: int = 0, y: int = 0) -> tuple[int, ...]:
    image = decode_image(data)
    assert image.mode == "RGB"
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize("name", sorted(REASONS))
def test_unusable_files_are_named_for_what_they_are(name: str) -> None:
    with pytest.raises(UnusableImageError, match=REASONS[name]) as caught:
        decode_image(unusable()[name])
    assert "\n" not in str(caught.value)


def test_lossless_rgb_comes_back_as_it_was() -> None:
    assert np.array_equal(np.asarray(decode_image(encode(noise()))), np.asarray(noise()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_ends_upright(orientation: int) -> None:
    upright = noise(12, 8)
    undo = {  # what a camera held so would have stored
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(decode_image(encode(stored, exif=exif))), np.asarray(upright))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    decoded = np.asarray(decode_image(encode(Image.fromarray(values))))
    assert decoded[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparency_is_composited_on_white() -> None:
    assert pixel(encode(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))) == (255, 255, 255)
    assert pixel(encode(Image.new("RGBA", (2, 2), (255, 0, 0, 255)))) == (255, 0, 0)
    assert pixel(encode(Image.new("LA", (2, 2), (0, 0)))) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30, 0, 0, 0])
    assert pixel(encode(palette)) == (10, 20, 30)
    assert pixel(encode(palette, transparency=0)) == (255, 255, 255)
    assert pixel(encode(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3))) == (255, 255, 255)


def test_cmyk_jpeg_keeps_its_colours() -> None:
    cyan = pixel(encode(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95))
    np.testing.assert_allclose(cyan, (0, 255, 255), atol=3)
    white = pixel(encode(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG", quality=95))
    np.testing.assert_allclose(white, (255, 255, 255), atol=3)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(data) == (255, 0, 0)


def test_resize_of_the_same_size_changes_nothing() -> None:
    assert np.array_equal(np.asarray(resize_and_crop(noise(40, 30), 30, 40)), np.asarray(noise(40, 30)))


@pytest.mark.parametrize("size", [(30, 90), (90, 30), (17, 64), (64, 17)])
def test_crop_keeps_the_centre_and_the_proportions(size: tuple[int, int]) -> None:
    """A disc in the middle stays a disc in the middle, whatever is cut off."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width]
    radius = min(size) / 4
    disc = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2 <= radius**2
    image = Image.fromarray((255 * disc).astype(np.uint8)).convert("RGB")
    out = np.asarray(resize_and_crop(image, 64, 64))[..., 0] / 255
    assert out.shape == (64, 64)
    rows, columns = np.mgrid[0:64, 0:64]
    assert (rows * out).sum() / out.sum() == pytest.approx(31.5, abs=0.1)
    assert (columns * out).sum() / out.sum() == pytest.approx(31.5, abs=0.1)
    scaled = radius * 64 / min(size)
    assert out.sum() == pytest.approx(np.pi * scaled**2, rel=0.05)


def test_a_constant_image_stays_constant_under_any_resize() -> None:
    image = Image.new("RGB", (37, 53), (9, 120, 250))
    assert set(resize_and_crop(image, 16, 80).get_flattened_data()) == {(9, 120, 250)}


def record(path: str, member: str | None = None) -> ImageRecord:
    return ImageRecord("0" * 16, path, member, 40, 30, None, None, "train", {})


def test_files_and_tar_members_are_read_alike(tmp_path: Path) -> None:
    pictures = {f"{index}.png": encode(noise(seed=index)) for index in range(3)}
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for name, data in pictures.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
            (tmp_path / name).write_bytes(data)
    reader = ImageReader(tmp_path)
    for name in ("2.png", "0.png", "1.png", "2.png"):
        assert reader.read_bytes(record("shard.tar", name)) == pictures[name]
        one, other = reader.read(record("shard.tar", name)), reader.read(record(name))
        assert one.tobytes() == other.tobytes()
    with pytest.raises(UserError, match=r"shard\.tar.*no member '3\.png'"):
        reader.read(record("shard.tar", "3.png"))
    with pytest.raises(UserError, match=r"3\.png: cannot be read"):
        reader.read(record("3.png"))


@pytest.mark.parametrize("name", ["x.png", "folder/" + "long" * 40 + ".png", "ünï.png"])
@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_known_place_in_an_archive_is_read_without_its_headers_while_it_holds(
    tmp_path: Path, name: str, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shard.tar"
    if kind == tarfile.USTAR_FORMAT and len(name) > 100:
        name = "folder/" * 12 + "x.png" * 4

    def write(*members: tuple[str, bytes]) -> None:
        with tarfile.open(path, "w", format=kind) as archive:
            for member, data in members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))

    one, other = encode(noise(seed=1)), encode(noise(seed=2))
    write(("before.png", other), (name, one))
    offset, length = index_tar(path).members[name]
    known = dataclasses.replace(record("shard.tar", name), offset=offset, length=length)
    with monkeypatch.context() as patch:
        patch.setattr("pixart_core.data.images.TarReader", lambda _: pytest.fail("read the headers"))
        assert ImageReader(tmp_path).read_bytes(known) == one
    write((name, one), ("behind.png", other))  # written anew: it lies elsewhere
    assert ImageReader(tmp_path).read_bytes(known) == one
    write(("before.png", other), ("y" + name[1:], one))  # at the same place, of the same size
    with pytest.raises(UserError, match="has no member"):
        ImageReader(tmp_path).read_bytes(known)
    write(("before.png", other), (name, one))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match="has no member"):
        ImageReader(tmp_path).read_bytes(known)


def test_an_image_that_broke_after_the_scan_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(noise())[:500])
    with pytest.raises(UserError, match=r"a\.png: .*was usable when the manifest was made"):
        ImageReader(tmp_path).read(record("a.png"))
