"""Laws of parts that need not fit: text without a VAE at hand, captions that are of other data."""

import shutil
from pathlib import Path

import pytest
from extraction import files, make_step, write_captions, write_encoders, write_pictures
from PIL import Image

from pixart_core.artifacts.captions import CaptionRow
from pixart_core.artifacts.manifest import image_id
from pixart_core.data.scan import manifest_for
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


def test_captions_of_other_data_with_the_same_names_are_told(encoders: Path, tmp_path: Path) -> None:
    pictures = [write_pictures(tmp_path / name, range(6)) for name in ("captioned", "scaled", "others")]
    for path in pictures[1].glob("*.png"):
        with Image.open(path) as picture:
            picture.resize((picture.width * 3 + 1, picture.height * 3)).save(path)
    shutil.copy(pictures[2] / "000.png", pictures[2] / "004.png")  # 32x32 instead of 24x48
    rows = [CaptionRow(image_id(f"{number:03d}.png"), f"caption {number}") for number in range(6)]
    captions = write_captions(tmp_path / "captions", rows)
    manifest_for(DataOptions(data=str(pictures[0])), captions / "manifest", Silent())
    said = []
    for data in pictures:
        progress = Said()
        step = make_step(data, encoders, captions=str(captions), only="text")
        run_extraction(step, tmp_path / f"of {data.name}", progress)
        said.append([line for line in progress.lines if "another shape" in line])
    assert [len(lines) for lines in said] == [0, 0, 1]
    assert said[2][0].startswith("1 of 6 images")
    assert str(pictures[2] / "004.png") in said[2][0]
