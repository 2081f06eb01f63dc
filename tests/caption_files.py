"""Twelve captions in every kind of file that they may come in, and what is to be counted of them."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.manifest import ImageRecord, image_id, write_manifest
from pixart_core.data.caption_statistics import run_caption_statistics
from pixart_core.progress import Silent
from pixart_core.recipe.caption_statistics import CaptionStatisticsStep

# 12 captions, 36 nouns: dog 12, cat 11, table 11, house 1, london 1.
CAPTIONS = ["A dog and a cat on the table."] * 11 + ["The dog sees a house in London!"]
COUNTED = {"captions": 12, "total_nouns": 36, "distinct_nouns": 5, "valid_distinct_nouns": 3}


def statistics(data: Path | str, **options: Any) -> dict[str, Any]:
    step = CaptionStatisticsStep.model_validate(
        {"data": str(data), "tokenizer": None, "num_proc": 1} | options
    )
    return run_caption_statistics(step, None, Silent())


def counted(part: dict[str, Any]) -> dict[str, Any]:
    return {key: part[key] for key in COUNTED}


def write_folder(folder: Path) -> str:
    """Images that nobody could decode: their captions are all that is read."""
    (folder / "below").mkdir(parents=True)
    for number, caption in enumerate(CAPTIONS):
        stem = folder / ("below" if number % 2 else "") / f"{number:02}"
        stem.with_suffix(".png").write_bytes(b"no image")
        if number < 6:
            stem.with_suffix(".txt").write_text(f"{caption}\n")
        else:
            stem.with_suffix(".json").write_text(json.dumps({"caption": caption, "note": f"note {number}"}))
    (folder / "bare.png").write_bytes(b"no image")
    return str(folder)


def write_tar(folder: Path) -> str:
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as archive:
        for number, caption in enumerate(CAPTIONS):
            for name, data in ((f"{number}.jpg", b"no image"), (f"{number}.txt", caption.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return str(folder / "*.tar")


def write_manifest_folder(folder: Path) -> str:
    records = [
        ImageRecord(image_id(str(n)), f"{n}.png", None, 8, 8, text, None, "train", {"alt": "a red fox"})
        for n, text in enumerate([*CAPTIONS, None])
    ]
    folder.mkdir()
    write_manifest(folder, records, [], Card("manifest", {}, {}))
    return str(folder)


def write_captions(folder: Path, captions: list[str] = CAPTIONS) -> str:
    folder.mkdir()
    rows = [
        {"id": image_id(str(number)), "caption": caption, "flags": []}
        for number, caption in enumerate([*captions, ""])
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Card("captions", {}, {}).write(folder)
    return str(folder)


def write_hub(folder: Path) -> str:
    import datasets

    datasets.Dataset.from_dict({"text": CAPTIONS, "n": list(range(12))}).save_to_disk(folder)
    return f"hf:{folder}"


def write_txt(folder: Path) -> str:
    folder.mkdir()
    (folder / "a.txt").write_bytes(("\ufeff" + "\r\n".join(CAPTIONS[:5]) + "\n\n").encode())
    (folder / "b.txt").write_text("\n".join(CAPTIONS[5:]))
    return str(folder / "{a,b}.txt")


def write_jsonl(folder: Path) -> str:
    folder.mkdir()
    rows = [{"url": "x"}, *({"id": n, "prompt": caption} for n, caption in enumerate(CAPTIONS))]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": None}]))
    return str(folder / "a.jsonl")


def write_csv(folder: Path, suffix: str = ".csv", delimiter: str = ",") -> str:
    folder.mkdir()
    with (folder / f"a{suffix}").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["id", "caption"], *([n, f"{text}\n"] for n, text in enumerate(CAPTIONS)), [99]])
    return str(folder / f"a{suffix}")


def write_parquet(folder: Path) -> str:
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    columns = {"captions": [[caption, "another fox"] for caption in CAPTIONS] + [[]], "image": [b"no"] * 13}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "a.parquet", row_group_size=5)
    return str(folder / "a.parquet")


SOURCES: dict[str, Callable[[Path], str]] = {
    "folder": write_folder,
    "tar": write_tar,
    "manifest": write_manifest_folder,
    "captions": write_captions,
    "hub": write_hub,
    "txt": write_txt,
    "jsonl": write_jsonl,
    "csv": write_csv,
    "tsv": lambda folder: write_csv(folder, ".tsv", "\t"),
    "parquet": write_parquet,
}


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path
