"""Laws of what extraction offers: resolutions, mirrored pictures, parts, captions, growth, refusals."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from extraction import files, make_step, write_captions, write_encoders, write_pictures
from PIL import Image, ImageOps
from transformers import AutoTokenizer, T5EncoderModel

from pixart_core.artifacts.captions import CaptionRow
from pixart_core.artifacts.card import Card
from pixart_core.artifacts.checkpoint import read_facts
from pixart_core.artifacts.features import FeatureStore
from pixart_core.artifacts.manifest import image_id
from pixart_core.data import images
from pixart_core.data.images import resize_and_crop
from pixart_core.encoders.extract import run_extraction
from pixart_core.encoders.text import TextEncoder
from pixart_core.encoders.vae import load_vae
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.training.loop import run_training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures", range(40))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def store(data: Path, encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At two resolutions, with mirrored pictures."""
    folder = tmp_path_factory.mktemp("store") / "features"
    step = make_step(data, encoders, resolutions=[32, 64], horizontal_flip=True)
    run_extraction(step, folder, Silent())
    return folder


@pytest.mark.parametrize("resolution", [32, 64])
@pytest.mark.parametrize("flip", [False, True])
def test_moments_are_those_that_diffusers_computes_of_the_picture(
    store: Path, data: Path, encoders: Path, resolution: int, flip: bool
) -> None:
    opened, vae = FeatureStore(store, resolution), load_vae(str(encoders))
    names = {image_id(path.name): path for path in data.glob("*.png")}
    assert len(opened) == 40
    for bucket, count in opened.buckets.items():
        batch = opened.batch(bucket, range(count), [flip] * count)
        for row, name in enumerate(batch.ids):
            picture = Image.open(names[name])
            assert bucket == tuple(side * resolution // 32 for side in (picture.height, picture.width))
            cut = resize_and_crop(picture, *bucket)
            pixels = torch.from_numpy(np.array(ImageOps.mirror(cut) if flip else cut)).permute(2, 0, 1)
            expected = vae.encode(pixels[None] / 127.5 - 1).latent_dist
            torch.testing.assert_close(batch.mean[row], expected.mean[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(batch.std[row], expected.std[0], atol=1e-5, rtol=1e-4)


def test_text_is_stored_once_for_all_resolutions_and_is_what_transformers_computes(
    store: Path, data: Path, encoders: Path
) -> None:
    model = T5EncoderModel.from_pretrained(encoders / "text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(encoders / "tokenizer")
    opened = FeatureStore(store, 64)
    captions = {image_id(path.name): path.with_suffix(".txt").read_text() for path in data.glob("*.png")}
    for bucket, count in opened.buckets.items():
        batch = opened.batch(bucket, range(count))
        for row, name in enumerate(batch.ids):
            with torch.no_grad():
                expected = model(tokenizer(captions[name], return_tensors="pt").input_ids)[0][0]
            torch.testing.assert_close(batch.text[row, batch.mask[row]], expected, atol=1e-5, rtol=1e-4)
    assert len(list(store.glob("text-*.safetensors"))) == 1
    assert opened.details["captions"] == 8


def test_training_takes_the_resolution_that_the_recipe_names(store: Path, tmp_path: Path) -> None:
    model = ModelOptions(num_layers=1, num_attention_heads=2, attention_head_dim=4, sample_size=16)
    options = {"features": str(store), "model": model, "max_train_steps": 1}
    options |= {"global_batch_size": 2, "micro_batch_size": 2}
    with pytest.raises(UserError, match=r"several resolutions \(32, 64\); choose one"):
        run_training(TrainStep(**options), tmp_path / "run", Silent())
    with pytest.raises(UserError, match="holds no resolution 48, only 32, 64"):
        run_training(TrainStep(**options, resolution=48), tmp_path / "run", Silent())
    run_training(TrainStep(**options, resolution=32), tmp_path / "run", Silent())
    assert set(read_facts(tmp_path / "run").trained_sizes) == {(32, 32), (24, 48), (48, 24)}


def test_each_picture_is_decoded_once_for_all_resolutions_and_sides(
    data: Path, encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_extraction(make_step(data, encoders, only="text"), tmp_path / "out", Silent())  # scans
    decoded, decode = [], images.decode_image
    monkeypatch.setattr(images, "decode_image", lambda bytes_: decoded.append(1) or decode(bytes_))
    step = make_step(data, encoders, resolutions=[32, 64], horizontal_flip=True)
    (tmp_path / "two").mkdir()
    (tmp_path / "out/manifest").rename(tmp_path / "two/manifest")
    run_extraction(step, tmp_path / "two", Silent())
    assert len(decoded) == 40


@pytest.mark.parametrize("first", ["text", "image"])
def test_parts_made_one_by_one_are_the_store_made_at_once(
    store: Path, data: Path, encoders: Path, tmp_path: Path, first: str
) -> None:
    options = {"resolutions": [32, 64], "horizontal_flip": True}
    other = {"text": "image", "image": "text"}[first]
    # The encoder of the other part is not even loaded.
    unused = {"text": "vae", "image": "text_encoder"}[first]
    lacking = tmp_path / "lacking"
    write_encoders(lacking)
    for path in (lacking / unused).glob("*.safetensors"):
        path.unlink()
    half = make_step(data, encoders, only=first, **options, **{unused: str(lacking)})
    result = run_extraction(half, tmp_path / "out", Silent())
    assert result["complete"] is False
    with pytest.raises(UserError, match=rf"unfinished: .* {other} shards missing"):
        FeatureStore(tmp_path / "out", 32)
    rest = make_step(data, encoders, only=other, **options)
    assert run_extraction(rest, tmp_path / "out", Silent())["complete"] is True
    assert files(tmp_path / "out") == files(store)


def test_images_added_later_add_shards_and_touch_none(data: Path, encoders: Path, tmp_path: Path) -> None:
    grown = write_pictures(tmp_path / "pictures", range(40))
    run_extraction(make_step(grown, encoders), tmp_path / "out", Silent())
    shards = sorted((tmp_path / "out").glob("*-*.safetensors"))
    before = [(path, path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in shards]
    # Two between the others in the order of names, one with a caption that is there already.
    for number, name in ((40, "010a"), (41, "000a"), (42, "zzz")):
        write_pictures(grown, range(number, number + 1))
        for path in grown.glob(f"{number:03d}.*"):
            path.rename(path.with_stem(name))
    result = run_extraction(make_step(grown, encoders), tmp_path / "out", Silent())
    after = {path: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in shards}
    assert all(after[path] == tuple(rest) for path, *rest in before)
    assert result["count"] == 43
    opened = FeatureStore(tmp_path / "out")
    new = {image_id(f"{name}.png") for name in ("010a", "000a", "zzz")}
    assert new <= {name for bucket in opened.buckets for name in opened.sample_ids(bucket)}
    run_extraction(make_step(grown, encoders), tmp_path / "out", Silent())  # nothing left to do
    assert {path.name for path in (tmp_path / "out").glob("plan-*")} == {
        "plan-00000.safetensors",
        "plan-00001.safetensors",
    }


def test_a_changed_or_lost_image_of_a_begun_store_is_refused(
    data: Path, encoders: Path, tmp_path: Path
) -> None:
    changing = write_pictures(tmp_path / "pictures", range(12))
    run_extraction(make_step(changing, encoders), tmp_path / "out", Silent())
    before = files(tmp_path / "out")
    (changing / "004.txt").write_text("something else")
    with pytest.raises(UserError, match=r"1 of the images .* another caption now, e.g. .* choose another"):
        run_extraction(make_step(changing, encoders), tmp_path / "out", Silent())
    write_pictures(changing, range(12))
    (changing / "007.png").unlink()
    with pytest.raises(UserError, match=r"1 of 12 images .* are gone from the data"):
        run_extraction(make_step(changing, encoders), tmp_path / "out", Silent())
    shards = {name: data for name, data in before.items() if name.endswith(".safetensors")}
    assert shards.items() <= files(tmp_path / "out").items()


def test_images_whose_caption_is_excluded_are_left_out_and_counted(
    data: Path, encoders: Path, tmp_path: Path
) -> None:
    names = [f"{number:03d}.png" for number in range(40)]
    rows = [
        CaptionRow(image_id(name), f"kind {number % 4}", excluded=number % 10 == 0)
        for number, name in enumerate(names)
    ]
    captions = write_captions(tmp_path / "captions", rows)
    result = run_extraction(make_step(data, encoders, captions=str(captions)), tmp_path / "out", Silent())
    assert (result["count"], result["excluded"], result["captions"]) == (36, 4, 5)
    opened = FeatureStore(tmp_path / "out")
    there = {name for bucket in opened.buckets for name in opened.sample_ids(bucket)}
    assert there == {row.id for row in rows if not row.excluded}
    write_captions(tmp_path / "none", [CaptionRow(row.id, "x", excluded=True) for row in rows])
    step = make_step(data, encoders, captions=str(tmp_path / "none"))
    with pytest.raises(UserError, match="the captions of all 40 images are marked as excluded"):
        run_extraction(step, tmp_path / "out2", Silent())


def test_other_weights_never_continue_a_store(data: Path, encoders: Path, tmp_path: Path) -> None:
    few = {"limit": 9}
    run_extraction(make_step(data, encoders, only="image", **few), tmp_path / "out", Silent())
    other = write_encoders(tmp_path / "others", seed=1)
    before = files(tmp_path / "out")
    with pytest.raises(UserError, match=r"was begun with the VAE .* \(weights \w+\), now it is others"):
        run_extraction(make_step(data, encoders, vae=str(other), **few), tmp_path / "out", Silent())
    with pytest.raises(UserError, match=r"other settings \(vae_dtype: \"fp32\", now \"bf16\"\)"):
        run_extraction(make_step(data, encoders, vae_dtype="bf16", **few), tmp_path / "out", Silent())
    assert files(tmp_path / "out") == before
    # The text is not begun: any encoder may make it.
    step = make_step(data, encoders, only="text", text_encoder=str(other), **few)
    assert run_extraction(step, tmp_path / "out", Silent())["complete"] is True
    described = Card.read(tmp_path / "out", "features").details["text_encoder"]
    assert described["source"] == str(other)


def break_weights(folder: Path, part: str, model: torch.nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).fill_(float("inf"))
    model.save_pretrained(folder / part)


def test_values_that_are_not_finite_are_refused_by_name(data: Path, encoders: Path, tmp_path: Path) -> None:
    broken = write_encoders(tmp_path / "broken")
    break_weights(broken, "vae", load_vae(str(encoders)))
    break_weights(broken, "text_encoder", T5EncoderModel.from_pretrained(encoders / "text_encoder"))
    step = make_step(data, encoders, vae=str(broken))
    with pytest.raises(
        UserError, match=r"VAE broken computes values that are not finite in float32 for .*png"
    ):
        run_extraction(step, tmp_path / "image", Silent())
    step = make_step(data, encoders, text_encoder=str(broken), text_encoder_dtype="bf16")
    with pytest.raises(UserError, match=r"broken computes .* not finite in bfloat16 for the caption '"):
        run_extraction(step, tmp_path / "text", Silent())
    assert not list((tmp_path / "image").glob("image-*"))
    assert not list((tmp_path / "text").glob("text-*"))


def test_captions_share_a_batch_with_those_of_their_length(
    data: Path, encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, encode = [], TextEncoder._encode_ids

    def noted(self: TextEncoder, ids: list[list[int]]) -> list[torch.Tensor]:
        batches.append([len(row) for row in ids])
        return encode(self, ids)

    monkeypatch.setattr(TextEncoder, "_encode_ids", noted)
    run_extraction(make_step(data, encoders, only="text", batch_size=3), tmp_path / "out", Silent())
    assert sorted(map(sorted, batches)) == [[1, 6, 7], [8, 9, 10], [11, 12]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 32, "resolutions": [64]}, "give resolution or resolutions, not both"),
        ({"resolutions": [32, 32]}, "one is given twice"),
        ({"resolutions": []}, "at least 1 item"),
        ({"only": "images"}, "'image' or 'text'"),
        ({"dtype": "fp16"}, "'bf16' or 'fp32'"),
        ({"text_encoder_dtype": "fp16"}, "'bf16' or 'fp32'"),
        ({"storage": "int4"}, "'int8', 'fp16' or 'fp32'"),
        ({"shard_size": 0}, "greater than 0"),
        ({"max_tokens": 0}, "greater than 0"),
        ({"batch_size": -1}, "greater than 0"),
        ({"horizontal_flip": "maybe"}, "valid boolean"),
        ({"aspect_buckets": "paper", "resolution": 32}, "paper has tables for 256, 512, 1024"),
        ({"aspect_buckets": "paper", "resolutions": [256, 64]}, "tables for 256, 512, 1024 pixels, not 64"),
        ({"aspect_buckets": [[16, 16], [16, 16]]}, "a size is given twice"),
    ],
)
def test_bad_options_are_refused(
    data: Path, encoders: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_step(data, encoders, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aspect_buckets": [[31, 32]]}, "bucket 31x32: the VAE needs sides that are multiples of 2"),
        ({"resolutions": [32, 48], "aspect_buckets": [[22, 46]]}, "bucket 33x69"),
        (
            {"resolutions": [64, 24], "aspect_buckets": [[62, 66]]},
            "62 px at resolution 64 is no whole number",
        ),
        ({"resolutions": [32, 64], "aspect_buckets": [[32, 32], [64, 64]]}, "64x64 .* two resolutions"),
        ({"heldout_fraction": 1.0}, "all are held out"),
        ({"device": "cuda:7"}, "device: 'cuda:7'"),
        ({"vae": "/nowhere"}, "/nowhere is not a folder; give the folder or the hub id of a vae"),
        ({"text_encoder": "/nowhere"}, "/nowhere is not a folder"),
        ({"captions": "/nowhere"}, "/nowhere is not a folder; expected captions"),
    ],
)
def test_options_that_do_not_fit_leave_nothing_encoded(
    data: Path, encoders: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_extraction(make_step(data, encoders, **options), tmp_path / "out", Silent())
    assert not list(tmp_path.glob("out/*.safetensors"))
    assert not os.path.exists(tmp_path / "out" / "card.json")
