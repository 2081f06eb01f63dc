"""Laws of parts that need not fit: text without a VAE at hand, captions that are of other data."""

import json
import shutil
from pathlib import Path

import pytest
from extraction import files, make_step, write_captions, write_encoders, write_pictures
from PIL import Image, ImageOps

from pixart_core.artifacts.captions import CaptionRow
from pixart_core.artifacts.image_records import json_line
from pixart_core.artifacts.manifest import MANIFEST, image_id
from pixart_core.data.scan import manifest_for
from pixart_core.data.scan_log import INSPECTED
from pixart_core.encoders.extract import run_extraction
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.data import DataOptions


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoders(tmp_path_factory.mktemp("encoders"))


def test_text_is_made_where_no_vae_is_at_hand(encoders: Path, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", range(10))
    gone = str(tmp_path / "gone")
    run_extraction(make_step(data, encoders, only="text", vae=gone), tmp_path / "out", Silent())
    with pytest.raises(UserError, match="gone"):
        run_extraction(make_step(data, encoders, only="image", vae=gone), tmp_path / "out", Silent())
    run_extraction(make_step(data, encoders, only="image"), tmp_path / "out", Silent())
    run_extraction(make_step(data, encoders), tmp_path / "once", Silent())
    assert files(tmp_path / "out") == files(tmp_path / "once")
    with pytest.raises(UserError, match="multiples of 2"):
        run_extraction(
            make_step(data, encoders, only="text", aspect_buckets=[[33, 32]]), tmp_path / "odd", Silent()
        )


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def forget_digests(folder: Path) -> None:
    """Make a manifest as it was before images had digests."""
    rows = [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]
    assert all(len(row.pop("digest")) == 16 for row in rows)
    (folder / MANIFEST).write_text("".join(json_line(row) for row in rows))


def test_a_picture_that_was_replaced_is_refused_and_the_store_stays_as_it_is(
    encoders: Path, tmp_path: Path
) -> None:
    data, store = write_pictures(tmp_path / "data", range(6)), tmp_path / "store"
    run_extraction(make_step(data, encoders), store, Silent())
    log = f"manifest/{INSPECTED}"  # may know more than the manifest
    before = {name: content for name, content in files(store).items() if name != log}
    with Image.open(data / "002.png") as picture:
        ImageOps.invert(picture).save(data / "002.png")
    with pytest.raises(UserError, match=r"1 of the images in .* have another content now, e\.g\. "):
        run_extraction(make_step(data, encoders), store, Silent())
    assert {name: content for name, content in files(store).items() if name != log} == before


def test_a_picture_that_is_replaced_between_plan_and_encoding_is_told(encoders: Path, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", range(6))
    manifest_for(DataOptions(data=str(data)), tmp_path / "manifest", Silent())
    step = make_step(tmp_path / "manifest", encoders)
    with Image.open(data / "002.png") as picture:
        inverted = ImageOps.invert(picture)
    inverted.save(data / "002.png")
    with pytest.raises(UserError, match=r"002\.png is not the picture that was scanned; restore it"):
        run_extraction(step, tmp_path / "store", Silent())


def test_captions_of_other_data_with_the_same_names_are_told(encoders: Path, tmp_path: Path) -> None:
    pictures = [write_pictures(tmp_path / name, range(6)) for name in ("captioned", "scaled", "others")]
    for path in pictures[1].glob("*.png"):
        with Image.open(path) as picture:
            picture.resize((picture.width * 3 + 1, picture.height * 3)).save(path)
    shutil.copy(pictures[2] / "000.png", pictures[2] / "004.png")  # 32x32 instead of 24x48
    rows = [CaptionRow(image_id(f"{number:03d}.png"), f"caption {number}") for number in range(6)]
    captions = write_captions(tmp_path / "captions", rows)
    manifest_for(DataOptions(data=str(pictures[0])), captions / "manifest", Silent())
    for data, others in zip(pictures[1:], (6, 1), strict=True):
        step = make_step(data, encoders, captions=str(captions), only="text")
        with pytest.raises(UserError, match=rf"{others} of 6 images are not .*{data}/00.\.png; caption"):
            run_extraction(step, tmp_path / f"of {data.name}", Silent())
        assert not (tmp_path / f"of {data.name}" / "plan-00000.safetensors").exists()
    forget_digests(captions / "manifest")
    said = []
    for data in pictures:
        progress = Said()
        step = make_step(data, encoders, captions=str(captions), only="text")
        run_extraction(step, tmp_path / f"of {data.name}", progress)
        said.append([line for line in progress.lines if "another shape" in line])
    assert [len(lines) for lines in said] == [0, 0, 1]
    assert said[2][0].startswith("1 of 6 images")
    assert str(pictures[2] / "004.png") in said[2][0]
