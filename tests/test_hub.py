"""Data that Hugging Face `datasets` reads."""

import csv
from pathlib import Path

import pytest
from broken_images import encode, noise

from pixart_core.artifacts.manifest import Manifest
from pixart_core.data.images import ImageReader
from pixart_core.data.scan import scan_images
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.data import DataOptions


def scan(data: str, **options: object) -> tuple[Manifest, list[dict[str, str]]]:
    return scan_images(DataOptions(data=data, **options), Silent())  # type: ignore[arg-type]


@pytest.fixture
def offline_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline_datasets")
def test_a_data_set_folder_reads_through_datasets(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text", "style"])
        for number in range(4):
            broken = number == 2
            (folder / f"{number}.png").write_bytes(b"?" if broken else encode(noise(20, 30, seed=number)))
            table.writerow([f"{number}.png", f"caption {number}", "flat"])
    manifest, dropped = scan(f"hf:{folder}", max_bad_fraction=0.5, label_key="style")
    assert [r.caption for r in manifest.records] == ["caption 0", "caption 1", "caption 3"]
    assert [(r.path, r.member) for r in manifest.records][2] == (f"hf:{folder}/train", "3")
    assert manifest.label_names == ("flat",)
    assert dropped == [{"path": "hf:rows/train, row 2", "reason": "not an image"}]
    image = ImageReader(tmp_path).read(manifest.records[2])
    assert image.tobytes() == noise(20, 30, seed=3).tobytes()
    assert scan(f"hf:{folder}/train", max_bad_fraction=0.5)[0].records[0].id == manifest.records[0].id
    with pytest.raises(UserError, match="choose one of its splits: train"):
        scan(f"hf:{folder}/test")


@pytest.mark.usefixtures("offline_datasets")
def test_a_hub_id_that_cannot_be_reached_is_one_line() -> None:
    with pytest.raises(UserError, match="hf:nobody/nothing: no data set that can be read") as caught:
        scan("hf:nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("offline_datasets")
def test_a_data_set_saved_to_disk_keeps_class_names_and_first_captions(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "captions": datasets.List(datasets.Value("string")),
            "kind": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    rows = {
        "image": [noise(seed=0), noise(seed=1)],
        "captions": [["one", "two"], []],
        "kind": [1, 0],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    manifest, dropped = scan(f"hf:{tmp_path / 'saved'}", label_key="kind")
    assert dropped == []
    assert [r.caption for r in manifest.records] == ["one", None]
    assert manifest.label_names == ("cat", "dog")
    assert [r.label for r in manifest.records] == [1, 0]
    assert ImageReader(tmp_path).read(manifest.records[1]).tobytes() == noise(seed=1).tobytes()


@pytest.mark.usefixtures("offline_datasets")
def test_a_data_set_without_images_says_which_columns_it_has(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a"], "kind": [1]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"has no image column \(columns: text, kind\)"):
        scan(f"hf:{tmp_path / 'saved'}")
