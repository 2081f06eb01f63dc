"""What a dry run says of the number of images, without opening one."""

import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from extraction import make_step, write_pictures

from pixart_core.recipe.caption import CaptionStep
from pixart_core.recipe.estimate import estimate


def test_a_dry_run_counts_the_images_of_archives_or_says_that_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = write_pictures(tmp_path / "data" / "plain", range(4))
    with tarfile.open(tmp_path / "data" / "some.tar", "w") as archive:
        for path in sorted(pictures.iterdir()):
            archive.add(path, f"inner/{path.name}")
        archive.add(pictures / "000.png", "inner/000.mask.png")
    table = pyarrow.table({"image": [b"x"] * 5})
    pyarrow.parquet.write_table(table, tmp_path / "data" / "rows.parquet")
    (tmp_path / "data" / "__MACOSX").mkdir()
    (tmp_path / "data" / "__MACOSX" / "000.png").write_bytes(b"")

    def told(data: Path | str, **options: object) -> dict[str, Any]:
        return estimate(CaptionStep(data=str(data), **options))

    assert told(tmp_path / "data") == {"images": 4 + 4 + 5}
    assert told(tmp_path / "data" / "some.tar") == {"images": 4}
    assert told(tmp_path / "data" / "*.tar") == {"images": 4}
    assert told(tmp_path / "data", limit=6) == {"images": 6}
    assert told(tmp_path / "not there yet") == {}
    assert "hub" in told("hf:org/data")["images_unknown"]
    extract = estimate(make_step(tmp_path / "data", tmp_path, shard_size=8))
    assert extract["images"] == 13
    (tmp_path / "cut.tar").write_bytes(b"no archive" * 100)
    assert "cannot be counted" in told(tmp_path / "cut.tar")["images_unknown"]
    monkeypatch.setattr("pixart_core.recipe.image_counts.MOST_MEMBERS", 5)
    assert "give a limit" in told(tmp_path / "data" / "some.tar")["images_unknown"]
    assert told(tmp_path / "data" / "some.tar", limit=1) == {"images": 1}
