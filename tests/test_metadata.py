"""metadata.{jsonl,csv,parquet}: captions in a table, as `datasets` reads them, and their mistakes."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from broken_images import encode, noise

from pixart_core.artifacts.manifest import Manifest
from pixart_core.data.scan import scan_images
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.data import DataOptions

Rows = Sequence[dict[str, object]]
ROWS: Rows = [
    {"file_name": "a.png", "text": 'says "hello", twice\nand on', "style": "flat"},
    {"file_name": "sub/b.png", "text": "ünïcode", "style": "3d"},
    {"file_name": "./c.png", "text": "  blanks around  ", "style": "flat"},
]


def scan(folder: Path, **options: object) -> tuple[Manifest, list[dict[str, str]]]:
    return scan_images(DataOptions(data=str(folder), **options), Silent())  # type: ignore[arg-type]


def write_images(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(noise(20 + number, 20, seed=number)))
    return folder


def write_rows(path: Path, rows: Rows) -> None:
    if path.suffix == ".csv":
        text = io.StringIO()
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\r\n")
        table.writeheader()
        table.writerows(rows)
        path.write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())  # as spreadsheets write it
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in rows))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(list(rows)), path)


def captions(manifest: Manifest) -> dict[str, str | None]:
    return {Path(record.path).name: record.caption for record in manifest.records}


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_table_says_what_datasets_imagefolder_reads_from_it(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = write_images(tmp_path / "data", "a.png", "sub/b.png", "c.png")
    write_rows(folder / f"metadata.{suffix}", ROWS)
    theirs = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    expected = {(row["image"].size, row["text"].strip(), row["style"]) for row in theirs}
    manifest, dropped = scan(folder)
    assert dropped == []
    assert {((r.width, r.height), r.caption, r.meta["style"]) for r in manifest.records} == expected
    assert len(expected) == 3
    assert all("text" not in r.meta and "file_name" not in r.meta for r in manifest.records)


def test_the_nearest_table_counts_then_side_files_and_unnamed_images_stay(tmp_path: Path) -> None:
    folder = write_images(tmp_path, "a.png", "sub/b.png", "sub/c.png", "d.png", "e.png")
    write_rows(folder / "metadata.csv", [
        {"file_name": name, "caption": f"outer {name}", "kind": "outer"}
        for name in ("a.png", "sub/b.png", "sub/c.png", "d.png")
    ])  # fmt: skip
    write_rows(folder / "sub" / "metadata.jsonl", [{"file_name": "b.png", "caption": "inner b"}])
    (folder / "d.txt").write_text("beside d")
    (folder / "a.json").write_text('{"caption": "json a", "size": 3}')
    manifest, dropped = scan(folder)
    assert dropped == []
    assert captions(manifest) == {
        "a.png": "json a", "b.png": "inner b", "c.png": "outer sub/c.png", "d.png": "beside d", "e.png": None,
    }  # fmt: skip
    meta = {Path(r.path).name: r.meta for r in manifest.records}
    assert meta["a.png"] == {"kind": "outer", "caption": "json a", "size": 3}
    assert meta["b.png"] == {}


def test_rows_that_cannot_be_used_are_in_the_ledger_and_nothing_outside_is_read(tmp_path: Path) -> None:
    write_images(tmp_path, "secret.png")
    folder = write_images(tmp_path / "data", "a.png", "ragged.png", "latin.png", "z.heic")
    rows = [
        b"file_name,text", b"a.png,first", b"a.png,again", b"../secret.png,outside",
        str(tmp_path / "secret.png").encode() + b",absolute", b"gone.png,missing", b"z.heic,kind",
        b"ragged.png,one,two", b"lost.png,one,two", b"latin.png,caf\xe9", b",no name",
        b"sub/../../secret.png,winding",
    ]  # fmt: skip
    (folder / "metadata.csv").write_bytes(b"\n".join(rows))
    manifest, dropped = scan(folder, max_bad_fraction=1.0)
    assert captions(manifest) == {"a.png": "first"}
    broken = "its row in metadata.csv is broken"
    assert {row["path"]: (row["reason"], row.get("detail", "")) for row in dropped} == {
        "ragged.png": (broken, "3 fields where the header has 2"),
        "latin.png": (broken, "not UTF-8"),
        "metadata.csv, row 2": ("names a file that an earlier row names", ""),
        "metadata.csv, row 3": ("names a file outside the data's folder", ""),
        "metadata.csv, row 4": ("names a file outside the data's folder", ""),
        "metadata.csv, row 8": ("broken row: 3 fields where the header has 2", ""),
        "metadata.csv, row 10": ("no file_name", ""),
        "metadata.csv, row 11": ("names a file outside the data's folder", ""),
        "gone.png": ("named in metadata.csv, but is not there", ""),
        "z.heic": ("format that is not read: convert it to .png or .jpg", ""),
    }


def test_broken_lines_of_json_are_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path, "a.png")
    lines = [
        b'{"file_name": "a.png", "text": "good"}',
        b'{"file_name": ',
        b"[1]",
        b'{"file_name": 3}',
        b"\xff",
    ]
    (folder / "metadata.jsonl").write_bytes(b"\n".join(lines))
    manifest, dropped = scan(folder, max_bad_fraction=1.0)
    assert captions(manifest) == {"a.png": "good"}
    assert [row["path"] for row in dropped] == [f"metadata.jsonl, row {number}" for number in (2, 3, 4, 5)]
    assert [row["reason"] for row in dropped] == [
        "broken row: not JSON", "broken row: not a JSON object", "no file_name", "broken row: not UTF-8",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"metadata.csv": b"file_name\na.png", "metadata.jsonl": b"{}"},
            "holds metadata.jsonl and metadata.csv",
        ),
        ({"metadata.csv": b"filename,text\na.png,x"}, r"has no column file_name \(columns: filename, text\)"),
        ({"metadata.csv": b"file_name,text,text\na.png,x,y"}, "has two columns 'text'; rename one of them"),
        ({"metadata.csv": b""}, r"has no column file_name \(columns: none\)"),
        ({"metadata.csv": b'file_name,text\na.png,"open\nb.png,x\n'}, "a quote in line 2 is not closed"),
        ({"metadata.csv": "file_name,text\na.png,x".encode("utf-16")}, "has no column file_name"),
        ({"metadata.parquet": b"PAR1 but no more"}, "metadata.parquet: not a parquet file that can be read"),
    ],
)
def test_tables_that_cannot_be_trusted_stop_with_one_line(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    folder = write_images(tmp_path, "a.png", "b.png")
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        scan(folder)
    assert "\n" not in str(caught.value)


def test_captions_beside_files_chosen_by_a_pattern_count_too(tmp_path: Path) -> None:
    write_images(tmp_path, "x/a.png", "x/b.png", "x/c.png")
    write_rows(tmp_path / "x" / "metadata.csv", [{"file_name": "a.png", "text": "of the table"}])
    (tmp_path / "x" / "b.txt").write_text("beside it")
    manifest, dropped = scan(tmp_path / "x" / "[ab].png")
    assert captions(manifest) == {"a.png": "of the table", "b.png": "beside it"}
    assert dropped == []
    assert [r.id for r in manifest.records] == [r.id for r in scan(tmp_path / "x")[0].records[:2]]
