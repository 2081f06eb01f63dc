"""Laws of extraction: every training image once, the right features, the same bytes elsewhere."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixart_core.artifacts.captions import CAPTIONS
from pixart_core.artifacts.card import Card, card_for
from pixart_core.artifacts.features import FeatureStore
from pixart_core.artifacts.manifest import read_manifest
from pixart_core.data.images import ImageReader, resize_and_crop
from pixart_core.encoders.build import run_encoders
from pixart_core.encoders.extract import run_extraction
from pixart_core.encoders.text import load_text_encoder
from pixart_core.encoders.vae import encode_moments, load_vae
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.encoders import AnalyticVae, EncodersStep, TinyT5
from pixart_core.recipe.features import ExtractFeaturesStep

SIZES = ((32, 32), (24, 48), (48, 24))
COUNT = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pictures.tar"
    generator = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(COUNT):
            height, width = SIZES[number % 3]
            picture = io.BytesIO()
            pixels = generator.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((width, height)).save(picture, "png")
            caption = "" if number == 5 else f"picture of kind {number % 7}"
            add(tar, f"{number:03d}.png", picture.getvalue())
            add(tar, f"{number:03d}.txt", caption.encode())
            add(tar, f"{number:03d}.json", json.dumps({"kind": f"k{number % 2}"}).encode())
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


@pytest.fixture(scope="module")
def encoders(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders") / "encoders"
    step = EncodersStep(data=str(data), vae=AnalyticVae(), text_encoder=TinyT5(width=16, num_heads=2))
    run_encoders(step, folder, Silent())
    return folder


def make_step(data: Path, encoders: Path, **options: object) -> ExtractFeaturesStep:
    chosen = {
        "aspect_buckets": SIZES,
        "storage": "fp32",
        "shard_size": 8,
        "batch_size": 3,
        "label_key": "kind",
        "heldout_fraction": 0.2,
        "device": "cpu",
    }
    return ExtractFeaturesStep.model_validate(
        {"data": str(data), "vae": str(encoders), "text_encoder": str(encoders), **chosen, **options}
    )


@pytest.fixture(scope="module")
def store_folder(data: Path, encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "features"
    run_extraction(make_step(data, encoders), folder, Silent())
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_training_image_is_there_once_in_its_bucket(store_folder: Path) -> None:
    manifest = read_manifest(store_folder / "manifest")
    store = FeatureStore(store_folder)
    train = manifest.split("train")
    assert 0 < len(train) < COUNT
    for bucket in store.buckets:
        expected = [record.id for record in train if (record.height, record.width) == bucket]
        assert store.sample_ids(bucket) == expected
    assert len(store) == len(train)
    assert store.label_names == ("k0", "k1")


def test_features_are_those_of_the_image_and_its_caption(store_folder: Path, encoders: Path) -> None:
    manifest = read_manifest(store_folder / "manifest")
    records = {record.id: record for record in manifest.records}
    store, reader = FeatureStore(store_folder), ImageReader(manifest.folder)
    vae, text_encoder = load_vae(str(encoders)), load_text_encoder(str(encoders))
    for bucket, count in store.buckets.items():
        batch = store.batch(bucket, range(count))
        for row, name in enumerate(batch.ids):
            record = records[name]
            image = resize_and_crop(reader.read(record), *bucket)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
            torch.testing.assert_close(batch.mean[row], encode_moments(vae, pixels)[0][0], atol=1e-5, rtol=0)
            text, _ = text_encoder.encode([record.caption or ""])
            torch.testing.assert_close(batch.text[row, batch.mask[row]], text[0], atol=1e-5, rtol=1e-4)
            assert batch.labels[row] == record.label
            assert batch.sizes[row].tolist() == [record.height, record.width]


def test_equal_captions_are_stored_once_and_the_empty_one_always(store_folder: Path, encoders: Path) -> None:
    store = FeatureStore(store_folder)
    assert store.details["captions"] == 8
    expected, _ = load_text_encoder(str(encoders)).encode([""])
    torch.testing.assert_close(store.empty_caption(), expected[0])


def test_the_card_names_the_encoders_and_the_error(
    store_folder: Path, data: Path, encoders: Path, tmp_path: Path
) -> None:
    details = Card.read(store_folder, "features").details
    built = Card.read(encoders, "encoders").details
    assert details["vae"]["hash"] == built["vae"]["hash"]
    assert details["vae"]["scaling_factor"] == built["vae"]["scaling_factor"]
    assert details["text_encoder"]["hash"] == built["text_encoder"]["hash"]
    assert details["error"] == {"mean": 0.0, "token": 0.0}
    result = run_extraction(make_step(data, encoders, storage="int8"), tmp_path / "out", Silent())
    assert 0 < result["error"]["token"] < 0.01
    assert str(tmp_path) not in (tmp_path / "out" / "card.json").read_text()


def test_the_same_data_elsewhere_gives_the_same_bytes(
    store_folder: Path, data: Path, encoders: Path, tmp_path: Path
) -> None:
    run_extraction(make_step(data, encoders), tmp_path / "out", Silent())
    assert files(tmp_path / "out") == files(store_folder)


def test_other_captions_can_be_given(store_folder: Path, data: Path, encoders: Path, tmp_path: Path) -> None:
    records = read_manifest(store_folder / "manifest").records
    folder = tmp_path / "captions"
    folder.mkdir()
    rows = [{"id": record.id, "caption": " kind 3 ", "flags": []} for record in records]
    (folder / CAPTIONS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = make_step(data, encoders, captions=str(folder))
    card_for("captions", step, {}).write(folder)
    run_extraction(step, tmp_path / "out", Silent())
    store = FeatureStore(tmp_path / "out")
    expected, _ = load_text_encoder(str(encoders)).encode(["kind 3"])
    assert store.details["captions"] == 2
    torch.testing.assert_close(store.batch((32, 32), [1]).text, expected)

    (folder / CAPTIONS).write_text("".join(json.dumps(row) + "\n" for row in rows[:-20]))
    with pytest.raises(UserError, match=r"lacks the captions of \d+ of \d+ images"):
        run_extraction(step, tmp_path / "out2", Silent())


def test_mistakes_are_named(store_folder: Path, data: Path, encoders: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="made with other settings"):
        run_extraction(make_step(data, encoders, max_tokens=5), store_folder, Silent())
    with pytest.raises(UserError, match="bucket 31x32: the VAE needs sides that are multiples of 2"):
        run_extraction(make_step(data, encoders, aspect_buckets=[[31, 32]]), tmp_path / "out", Silent())
    with pytest.raises(UserError, match="all are held out"):
        run_extraction(make_step(data, encoders, heldout_fraction=1.0), tmp_path / "out", Silent())
