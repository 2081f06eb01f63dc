"""Laws of captions and the pictures they describe: names may stay when a picture is another one."""

import json
import shutil
from pathlib import Path

import pytest
import xxhash
from broken_images import encode, noise
from PIL import Image

from pixart_core.artifacts.captions import read_captions
from pixart_core.artifacts.card import Card
from pixart_core.artifacts.image_records import json_line
from pixart_core.artifacts.manifest import MANIFEST, ImageRecord, read_manifest
from pixart_core.data.scan import manifest_for
from pixart_core.data.scan_log import INSPECTED
from pixart_core.encoders.caption import run_caption
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.caption import CaptionStep
from pixart_core.recipe.data import DataOptions


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_llava import save_tiny_llava

    return save_tiny_llava(tmp_path_factory.mktemp("models") / "llava")


def write_data(folder: Path, seeds: range) -> Path:
    folder.mkdir()
    for number, seed in enumerate(seeds):
        (folder / f"{number}.png").write_bytes(encode(noise(seed=seed)))
    return folder


def step_for(data: Path, llava: Path) -> CaptionStep:
    return CaptionStep(data=str(data), captioner=str(llava), batch_size=2, max_new_tokens=4, device="cpu")


def content(folder: Path) -> dict[str, bytes]:
    """All files but the log of the scan, which may know more than the manifest."""
    kept = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != INSPECTED)
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_a_scan_knows_the_bytes_of_each_image_and_captions_which_they_describe(
    tmp_path: Path, llava: Path
) -> None:
    data, output = write_data(tmp_path / "data", range(3)), tmp_path / "captions"
    run_caption(step_for(data, llava), output, Silent())
    manifest = read_manifest(output / "manifest")
    expected = [xxhash.xxh3_64((data / f"{n}.png").read_bytes()).hexdigest() for n in range(3)]
    assert [record.digest for record in manifest.records] == expected
    assert [row.digest for row in read_captions(output).values()] == expected


@pytest.mark.parametrize("kept_manifest", [True, False])
def test_other_data_of_the_same_names_get_no_captions_of_the_first(
    tmp_path: Path, llava: Path, kept_manifest: bool
) -> None:
    first, other = write_data(tmp_path / "a", range(3)), write_data(tmp_path / "b", range(5, 9))
    shutil.copy(first / "1.png", other / "1.png")
    source, output = first, tmp_path / "captions"
    if not kept_manifest:
        source = tmp_path / "manifest"
        manifest_for(DataOptions(data=str(first)), source, Silent())
    run_caption(step_for(source, llava), output, Silent())
    before = content(output)
    with pytest.raises(UserError, match=rf"2 of 4 images are not those .*{other}/0\.png; choose another"):
        run_caption(step_for(other, llava), output, Silent())
    assert content(output) == before
    assert (output / "manifest").exists() == kept_manifest
    assert run_caption(step_for(source, llava), output, Silent())["captioned_now"] == 0
    assert content(output) == before
    moved = first.rename(tmp_path / "moved")
    (moved / "more.png").write_bytes(encode(noise(seed=11)))
    assert run_caption(step_for(moved, llava), output, Silent())["captioned_now"] == 1


def test_a_picture_that_was_replaced_by_one_of_its_size_keeps_no_caption(tmp_path: Path, llava: Path) -> None:
    data, output = tmp_path / "data", tmp_path / "captions"
    data.mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16), (number, 20, 30)).save(data / f"{number}.bmp")
    run_caption(step_for(data, llava), output, Silent())
    before, bytes_before = content(output), (data / "1.bmp").stat().st_size
    Image.new("RGB", (16, 16), (200, 20, 30)).save(data / "1.bmp")
    assert (data / "1.bmp").stat().st_size == bytes_before
    with pytest.raises(UserError, match=r"1 of 3 images are not those .*1\.bmp"):
        run_caption(step_for(data, llava), output, Silent())
    assert content(output) == before


def test_a_picture_replaced_after_the_scan_gets_no_caption_until_it_is_looked_at(
    tmp_path: Path, llava: Path
) -> None:
    data, output, manifest = write_data(tmp_path / "data", range(8)), tmp_path / "captions", tmp_path / "m"
    manifest_for(DataOptions(data=str(data)), manifest, Silent())
    good = (data / "2.png").read_bytes()
    (data / "2.png").write_bytes(encode(noise(seed=20)))
    step = step_for(manifest, llava).model_copy(update={"max_bad_fraction": 0.5})
    assert run_caption(step, output, Silent())["failed"] == 1
    (row,) = [row for row in read_captions(output).values() if row.failed]
    assert row.reason is not None
    assert "is not the picture that was scanned" in row.reason
    assert row.digest is None
    (data / "2.png").write_bytes(good)
    assert run_caption(step, output, Silent())["failed"] == 0
    assert all(row.digest for row in read_captions(output).values())


@pytest.mark.parametrize("digest", ["none", "zzzzzzzzzzzzzzzz", 7])
def test_a_digest_that_is_none_is_a_damaged_row(tmp_path: Path, digest: object) -> None:
    row = {"id": "0" * 16, "caption": "a fox", "flags": [], "digest": digest}
    (tmp_path / "captions.jsonl").write_text(json.dumps(row) + "\n")
    Card("captions", {}, {}).write(tmp_path)
    with pytest.raises(UserError, match=r"captions\.jsonl:1: damaged row"):
        read_captions(tmp_path)
    record = ImageRecord("0" * 16, "0.png", None, 8, 8, None, None, "train").as_row() | {"digest": digest}
    (tmp_path / MANIFEST).write_text(json_line(record))
    Card("manifest", {}, {"images": 1}).write(tmp_path)
    with pytest.raises(UserError, match=r"manifest\.jsonl:1: not an image record"):
        list(read_manifest(tmp_path).records)
