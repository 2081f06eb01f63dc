"""Parquet files with an image a row, read without unpacking them."""

import random
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_images import encode, noise

from pixart_core.artifacts.manifest import Manifest, image_id
from pixart_core.data.images import ImageReader
from pixart_core.data.parquet import ParquetRows
from pixart_core.data.scan import scan_images
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.data import DataOptions

COUNT = 7


def scan(data: Path | str, **options: object) -> tuple[Manifest, list[dict[str, str]]]:
    return scan_images(DataOptions(data=str(data), **options), Silent())  # type: ignore[arg-type]


def pixels(number: int) -> bytes:
    return noise(20 + number, 20, seed=number).tobytes()


def write(
    path: Path, images: list[Any], *, column: str = "image", group: int = 3, **columns: list[Any]
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({column: images, **columns})
    pq.write_table(table, path, row_group_size=group, compression="none", use_dictionary=False)
    return path


@pytest.mark.parametrize("kind", ["struct", "bytes", "path"])
def test_images_as_structs_bytes_or_paths_are_the_same_images(tmp_path: Path, kind: str) -> None:
    data = [encode(noise(20 + number, 20, seed=number)) for number in range(COUNT)]
    for number, item in enumerate(data):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.png.bin").write_bytes(item)
    texts = [f"caption {number}" if number else None for number in range(COUNT)]
    kinds: dict[str, tuple[str, list[Any]]] = {
        "struct": ("image", [{"bytes": item, "path": "somewhere.png"} for item in data]),
        "bytes": ("jpg", data),
        "path": ("file_name", [f"{number}.png.bin" for number in range(COUNT)]),
    }
    column, images = kinds[kind]
    file = write(tmp_path / "in" / "x.parquet", images, column=column, text=texts, score=[0.5] * COUNT)
    manifest, dropped = scan(file)
    assert dropped == []
    assert [r.caption for r in manifest.records] == texts
    assert [r.id for r in manifest.records] == [image_id("x.parquet", str(row)) for row in range(COUNT)]
    assert manifest.records[2].meta == {"score": 0.5}
    reader = ImageReader("/")
    assert [reader.read(r).tobytes() for r in manifest.records] == [pixels(n) for n in range(COUNT)]
    assert scan(tmp_path / "in" / "*.parquet")[0].records == manifest.records
    (tmp_path / "in").rename(tmp_path / "moved")
    assert [r.id for r in scan(tmp_path / "moved")[0].records] == [r.id for r in manifest.records]


def test_rows_are_read_in_any_order_and_from_threads(tmp_path: Path) -> None:
    count = 1500
    file = write(tmp_path / "x.parquet", [f"image {row}".encode() for row in range(count)], group=400,
                 text=[f"text {row}" for row in range(count)])  # fmt: skip
    rows = ParquetRows(file)
    wrong: list[int] = []

    def read(seed: int) -> None:
        order = random.Random(seed).sample(range(count), 60) + list(range(1490, count)) + [0]
        for row in order:
            if rows.image(row) != f"image {row}".encode() or rows.text(row) != (f"text {row}", {}):
                wrong.append(row)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    with pytest.raises(UserError, match=r"has no row 1500 \(it has 1500\)"):
        rows.image(count)


def test_rows_without_a_usable_image_are_in_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encode(noise()))
    good = encode(noise())
    rows = [{"bytes": data, "path": path} for data, path in [
        (good, None), (None, None), (b"", "../secret.png"), (None, "gone.png"), (good[:200], None),
        (None, "ok.png"),
    ]]  # fmt: skip
    file = write(tmp_path / "in" / "x.parquet", [*rows, None])
    (tmp_path / "in" / "ok.png").write_bytes(good)
    manifest, dropped = scan(file, max_bad_fraction=1.0)
    assert [r.member for r in manifest.records] == ["0", "5"]
    assert [(row["path"], row["reason"]) for row in dropped] == [
        ("x.parquet, row 1", "empty file"),
        ("x.parquet, row 2", "names a file outside the folder of its parquet file"),
        ("x.parquet, row 3", "cannot be read: No such file or directory"),
        ("x.parquet, row 4", "truncated"),
        ("x.parquet, row 6", "empty file"),
    ]


def test_tables_without_images_are_told_but_those_of_a_tar_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(noise()))
    write(tmp_path / "0.parquet", ["x"], column="url")
    write(tmp_path / "1.parquet", ["x"], column="url")
    (tmp_path / "1.tar").write_bytes(b"\0" * 10240)
    manifest, dropped = scan(tmp_path, max_bad_fraction=0.5)
    assert len(manifest.records) == 1
    assert dropped == [{"path": "0.parquet", "reason": "has no image column (columns: url)"}]
    with pytest.raises(UserError, match=r"0\.parquet: has no image column \(columns: url\)"):
        scan(tmp_path / "0.parquet")


def test_a_table_with_images_beside_a_tar_of_its_name_is_no_table_of_the_tar(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"\0" * 10240)
    table = write(tmp_path / "0.parquet", [{"bytes": encode(noise()), "path": None}] * 2)
    for data in (tmp_path, table):
        assert [r.member for r in scan(data)[0].records] == ["0", "1"]


def test_a_choice_of_columns_and_a_damaged_file_are_one_line(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", [b"1"], column="left", right=[b"2"])
    with pytest.raises(UserError, match=r"which column holds the images\? \(left, right\); name it image"):
        scan(file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"x\.parquet: .*") as caught:
        scan(file)
    assert "\n" not in str(caught.value)


def test_damage_inside_a_file_costs_its_rows_only(tmp_path: Path) -> None:
    images = [encode(noise(20 + number, 20, seed=number)) for number in range(COUNT)]
    file = write(tmp_path / "x.parquet", images, group=3)
    data = bytearray(file.read_bytes())
    place = data.index(images[4])
    before = data.index(images[3])
    data[before - 60 : place] = b"\xff" * (place - before + 60)  # the page of the second row group
    file.write_bytes(data)
    manifest, dropped = scan(file, max_bad_fraction=1.0)
    assert {"0", "1", "2", "6"} <= {r.member for r in manifest.records}
    assert len(manifest.records) + len(dropped) == COUNT
    assert dropped
