"""Resizing before the networks, against torch, transformers and TensorFlow 1's rule pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pixart_core.evaluation.preparation import (
    CLIP_MEAN,
    CLIP_STD,
    FID_PREPARATIONS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    center_square,
    center_square_then,
    cleanfid,
    coco256_cleanfid,
    pytorch_fid,
    short_side_then_crop,
    square,
    tensorflow1_bilinear,
    torch_fidelity,
)

SIZES = [(64, 64), (299, 299), (401, 333), (120, 640)]  # height, width


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def tensorflow1(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The kernel of tf.image.resize_bilinear (TensorFlow 1), in float64, one pixel at a time."""
    out = np.empty((height, width))
    for i in range(height):
        y = i * pixels.shape[0] / height
        top, bottom = int(y), min(int(y) + 1, pixels.shape[0] - 1)
        for j in range(width):
            x = j * pixels.shape[1] / width
            left, right = int(x), min(int(x) + 1, pixels.shape[1] - 1)
            above = pixels[top, left] * (1 - (x - left)) + pixels[top, right] * (x - left)
            below = pixels[bottom, left] * (1 - (x - left)) + pixels[bottom, right] * (x - left)
            out[i, j] = above * (1 - (y - top)) + below * (y - top)
    return out


@pytest.mark.parametrize(("height", "width"), [(5, 9), (40, 31), (64, 64)])
def test_tensorflow1_resizing_keeps_the_first_corner(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, (1, height, width)).astype(np.float32)
    found = tensorflow1_bilinear(pixels, 23, 17)
    np.testing.assert_allclose(found[0], tensorflow1(pixels[0].astype(np.float64), 23, 17), atol=2e-3)
    assert found[0, 0, 0] == pixels[0, 0, 0]


def test_tensorflow1_resizing_to_the_same_size_changes_nothing() -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 299, 299)).astype(np.float32)
    np.testing.assert_array_equal(tensorflow1_bilinear(pixels, 299, 299), pixels)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pytorch_fid_is_torch_interpolation_of_0_to_1(height: int, width: int) -> None:
    image = picture(height, width)
    pixels = torch.tensor(np.asarray(image) / 255).permute(2, 0, 1)[None].double()
    resized = torch.nn.functional.interpolate(pixels, size=(299, 299), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(pytorch_fid(image), (2 * resized - 1)[0].numpy(), atol=2e-4)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_cleanfid_is_an_antialiased_bicubic_without_rounding(height: int, width: int) -> None:
    image = picture(height, width)
    pixels = torch.tensor(np.array(image)).permute(2, 0, 1)[None].double()
    resized = torch.nn.functional.interpolate(pixels, size=(299, 299), mode="bicubic", antialias=True)
    np.testing.assert_allclose(cleanfid(image) * 128 + 128, resized[0].clamp(0, 255).numpy(), atol=5e-4)


def test_coco256_crops_the_centre_and_reduces_with_lanczos_first() -> None:
    image = picture(300, 520)
    small = image.crop((110, 0, 410, 300)).resize((256, 256), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(coco256_cleanfid(image), cleanfid(small))
    ready = picture(256, 256)
    np.testing.assert_array_equal(coco256_cleanfid(ready), cleanfid(ready))


def test_protocols_differ_and_keep_flat_colours() -> None:
    noise = picture(200, 200)
    prepared = [prepare(noise) for prepare in FID_PREPARATIONS.values()]
    assert all(np.abs(a - b).mean() > 0.05 for i, a in enumerate(prepared) for b in prepared[i + 1 :])
    flat = Image.new("RGB", (200, 100), (255, 0, 128))
    for name, (white, black) in {
        "coco256-cleanfid": (127 / 128, -1),
        "pytorch-fid": (1, -1),
        "torch-fidelity": (127 / 128, -1),
    }.items():
        result = FID_PREPARATIONS[name](flat)
        assert result.shape == (3, 299, 299)
        np.testing.assert_allclose(result[0], white, atol=1e-5)
        np.testing.assert_allclose(result[1], black, atol=1e-5)
    assert torch_fidelity(flat).dtype == np.float32


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 75), (75, 100), (31, 200)])
def test_clip_preparation_is_that_of_its_processor(height: int, width: int) -> None:
    image = picture(height, width)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    theirs = processor(images=image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(short_side_then_crop(32, CLIP_MEAN, CLIP_STD)(image), theirs, atol=1e-5)


def test_cmmd_and_dinov2_preparations_follow_their_reference_code() -> None:
    image = picture(90, 61)
    resized = np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC)) / 255
    expected = (resized - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(
        square(28, IMAGENET_MEAN, IMAGENET_STD)(image), expected.transpose(2, 0, 1), atol=1e-5
    )
    cropped = image.crop((0, 14, 61, 75))
    assert center_square(image).tobytes() == cropped.tobytes()
    np.testing.assert_array_equal(
        center_square_then(28, CLIP_MEAN, CLIP_STD)(image), square(28, CLIP_MEAN, CLIP_STD)(cropped)
    )
