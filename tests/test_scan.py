"""What a scan writes is a function of data and options, however odd the data are."""

import dataclasses
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from broken_images import encode, noise, unusable, write_salted_folder
from scans import content, options

from pixart_core.artifacts.manifest import read_dropped
from pixart_core.data import inspection, scan
from pixart_core.data.scan import manifest_for, scan_images
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.data import DataOptions


def test_only_what_is_new_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, folder = tmp_path / "data", tmp_path / "m"
    data.mkdir()
    for number in range(300):
        (data / f"{number:03d}.png").write_bytes(encode(noise(12, 12, seed=number)))
    (data / "metadata.csv").write_text(
        "file_name,text\n" + "".join(f"{n:03d}.png,old {n}\n" for n in range(300))
    )
    seen: list[str] = []
    inspect = inspection.inspect_candidate
    monkeypatch.setattr(
        inspection, "inspect_candidate", lambda c, facts: (seen.append(c.name), inspect(c, facts))[1]
    )

    def run(**changes: Any) -> int:
        seen.clear()
        manifest_for(DataOptions.model_validate({"data": str(data), **changes}), folder, Silent())
        return len(seen)

    near = {"near_duplicates": 1}
    assert run(filters=near) == 300
    # Other options, fewer filters, a limit and back: everything is known.
    assert run(heldout_fraction=0.5) == run(limit=10) == run(filters=near) == 0
    (data / "new.png").write_bytes(encode(noise(12, 12, seed=1000)))
    assert 1 <= run(filters=near) < 200
    table = data / "metadata.csv"
    table.write_text(table.read_text().replace("old 17\n", "new 17\n"))
    assert 1 <= run(filters=near) < 200
    fresh = tmp_path / "fresh"
    manifest_for(DataOptions.model_validate({"data": str(data), "filters": near}), fresh, Silent())
    assert content(folder) == content(fresh)
    assert b"new 17" in content(fresh)["manifest.jsonl"]


def test_pipes_sockets_loops_and_strange_names_neither_hang_nor_hide(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_salted_folder(data, good=2)
    os.mkfifo(data / "pipe.png")
    os.mkfifo(data / "image 000.json")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(data / "socket.jpg"))
    os.symlink("nowhere", data / "dead.png")
    os.symlink("loop", data / "loop")
    os.symlink(data, data / "deep" / "circle")
    os.symlink("image 000.png", data / "linked.png")
    strange = ["new\nline.png", os.fsdecode(b"latin-\xe9.png"), "ünï.png", " .png", "tab\t.png"]
    for name in strange:
        (data / name).write_bytes(encode(noise()))
    (data / "folder.png").mkdir()
    (data / "folder.png" / "inside.png").write_bytes(encode(noise()))
    manifest = manifest_for(
        DataOptions.model_validate({"data": str(data), "max_bad_fraction": 0.9}), tmp_path / "m", Silent()
    )
    server.close()
    kept = {os.path.relpath(record.path, data) for record in manifest.records}
    expected = {"image 000.png", "deep/er/image 001.png", "linked.png", "folder.png/inside.png", *strange}
    assert kept == expected
    told = {row["path"]: row["reason"] for row in read_dropped(tmp_path / "m")}
    special = "no plain file (a pipe, socket or device)"
    assert {name: told[name] for name in ("pipe.png", "socket.jpg", "dead.png")} == {
        "pipe.png": special, "socket.jpg": special, "dead.png": "link to nothing",
    }  # fmt: skip
    assert set(told) == {"pipe.png", "socket.jpg", "dead.png", *unusable()}


def test_a_file_that_vanishes_during_the_scan_is_in_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(encode(noise()))
        (tmp_path / f"{name}.txt").write_text(name)
    found = scan.list_images(str(tmp_path))
    parts = list(found.parts())
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.txt").unlink()
    listing = dataclasses.replace(found, parts=lambda: iter(parts))
    monkeypatch.setattr(scan, "list_images", lambda _: listing)
    manifest, dropped = scan_images(options(tmp_path, max_bad_fraction=0.9, filters={}), Silent())
    assert [Path(r.path).name for r in manifest.records] == ["c.png"]
    gone = "cannot be read: No such file or directory"
    assert dropped == [{"path": "a.png", "reason": gone}, {"path": "b.png", "reason": gone}]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_read_is_told(tmp_path: Path) -> None:
    for name in ("open", "shut"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "x.png").write_bytes(encode(noise()))
    (tmp_path / "data" / "locked.png").write_bytes(encode(noise()))
    (tmp_path / "data" / "locked.png").chmod(0)
    (tmp_path / "data" / "shut").chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    seen: list[Any] = []

    def as_nobody() -> None:
        os.seteuid(65534)
        try:
            seen.extend(scan_images(options(tmp_path / "data", max_bad_fraction=0.9), Silent()))
        finally:
            os.seteuid(0)

    as_nobody()
    assert len(seen[0].records) == 1
    assert seen[1] == [
        {"path": "locked.png", "reason": "cannot be read: Permission denied"},
        {"path": "shut", "reason": "folder cannot be read: Permission denied"},
    ]


def test_many_broken_images_stop_a_long_scan_before_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pixart_core.data import scan_run

    monkeypatch.setattr(scan_run, "_EARLY", 50)
    for number in range(600):
        (tmp_path / f"{number:04d}.png").write_bytes(b"?")
    with pytest.raises(
        UserError, match=r"none of the first (\d+) images can be used: not an image"
    ) as caught:
        scan_images(DataOptions(data=str(tmp_path)), Silent())  # type: ignore[call-arg]
    assert "first 600 images" not in str(caught.value)


def test_a_mistake_leaves_no_folder_behind(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    here = str(tmp_path / "data")
    mistakes = (
        {"data": here},
        {"data": "gone"},
        {"data": here, "streaming": True},
        {"data": here, "exclude": "x"},
    )
    for wrong in mistakes:
        with pytest.raises(UserError):
            manifest_for(DataOptions.model_validate(wrong), tmp_path / "m", Silent())
        assert not (tmp_path / "m").exists(), wrong


def test_what_stopped_a_scan_is_listed_until_it_is_mended(tmp_path: Path) -> None:
    data = write_salted_folder(tmp_path / "data", good=10)
    folder = tmp_path / "m"
    with pytest.raises(
        UserError, match=f"8 of 18 images cannot be used: .*; all of them are in {folder}/unusable"
    ):
        manifest_for(options(data, max_bad_fraction=0.1), folder, Silent())
    rows = [json.loads(line) for line in (folder / scan.UNUSABLE).read_text().splitlines()]
    assert [row["path"] for row in rows] == sorted(unusable())
    for name in unusable():
        (data / name).unlink()
    assert len(manifest_for(options(data, max_bad_fraction=0.1, filters={}), folder, Silent()).records) == 10
    assert not (folder / scan.UNUSABLE).exists()
