"""A scan can be killed, crowded, starved and repeated: what it writes is a function of data and options."""

import dataclasses
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from broken_images import encode, noise, unusable, write_salted_folder

from pixart_core.artifacts.manifest import read_dropped
from pixart_core.data import inspection, scan, sources
from pixart_core.data.scan import manifest_for, scan_images
from pixart_core.data.scan_log import INSPECTED, open_scan_log
from pixart_core.errors import PixartError, UserError
from pixart_core.launch import Processes
from pixart_core.progress import Silent
from pixart_core.recipe.data import DataOptions

OPTIONS = {
    "max_bad_fraction": 0.5,
    "heldout_fraction": 0.2,
    "filters": {"exact_duplicates": "pixels", "near_duplicates": 2, "min_size": 9},
}
WORKER = """
import json, sys, time
from pathlib import Path
from pixart_core.data import inspection, sources
from pixart_core.data.scan import manifest_for
from pixart_core.progress import Silent
from pixart_core.recipe.data import DataOptions

sources._GROUP = 32
decode = inspection.decode_image
inspection.decode_image = lambda data: (time.sleep(float(sys.argv[3])), decode(data))[1]
manifest_for(DataOptions.model_validate(json.loads(sys.argv[1])), Path(sys.argv[2]), Silent())
"""


def options(data: Path, **changes: Any) -> DataOptions:
    return DataOptions.model_validate({"data": str(data), **OPTIONS, **changes})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def lines(folder: Path) -> int:
    log = folder / INSPECTED
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.fixture(scope="module", autouse=True)
def small_groups() -> Iterator[None]:
    """Of 32 files instead of 256, so that a small folder takes many lines of the log."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_GROUP", 32)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 images, every fifth a copy, some too small, some broken; loose and in a tar."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(500):
        place = folder / f"{number % 7}" / f"{number:04d}.png"
        place.parent.mkdir(exist_ok=True)
        seed = number // 5 if number % 5 == 0 else number
        place.write_bytes(encode(noise(8 if number % 11 == 0 else 12, 12, seed=seed)))
        place.with_suffix(".txt").write_text(f"caption {number}")
    for name, broken in unusable().items():
        (folder / name).write_bytes(broken)
    packed = folder / "3"
    subprocess.run(["tar", "-cf", str(folder / "packed.tar"), "-C", str(packed), "."], check=True)
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "m"
    manifest_for(options(data), folder, Silent())
    return folder


def start(data: Path, folder: Path, delay: float) -> "subprocess.Popen[str]":
    told = json.dumps({"data": str(data), **OPTIONS})
    command = [sys.executable, "-c", WORKER, told, str(folder), str(delay)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_at_random_points_a_scan_ends_as_an_undisturbed_one(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """SIGKILL while the log grows; no line is lost or written twice."""
    folder = tmp_path / "m"
    total, random_, kills = lines(undisturbed), random.Random(0), 0
    for _ in range(6):
        before = lines(folder)
        process = start(data, folder, delay=0.008)
        while lines(folder) <= before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(random_.random() * 0.15)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert before < lines(folder) <= total
    assert kills >= 5
    # A line is "{"key": "...", ...": none was written twice.
    keys = [line.split(b'"')[3] for line in (folder / INSPECTED).read_bytes().splitlines()]
    assert len(set(keys)) == len(keys)
    manifest_for(options(data), folder, Silent())
    assert content(folder) == content(undisturbed)


@pytest.mark.parametrize("part", ["manifest.jsonl", "card.json", INSPECTED])
def test_a_kill_while_the_result_is_published_leaves_no_trace(
    data: Path, undisturbed: Path, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """No handler may see it."""

    folder = tmp_path / "m"
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if Path(target).name == part:
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            manifest_for(options(data), folder, Silent())
    assert not (folder / "card.json").exists()
    manifest_for(options(data), folder, Silent())
    assert content(folder) == content(undisturbed)


@pytest.mark.parametrize("damage", ["torn", "zeros", "foreign"])
def test_a_damaged_end_of_the_log_is_looked_at_again(
    data: Path, undisturbed: Path, tmp_path: Path, damage: str
) -> None:
    whole = (undisturbed / INSPECTED).read_bytes()
    random_ = random.Random(damage)
    for _ in range(3):
        cut = random_.randrange(len(whole))
        folder = tmp_path / f"{cut}"
        folder.mkdir()
        end = whole[: cut + 1].rfind(b"\n") + 1
        length = whole.index(b"\n", cut) + 1 - end
        tail = {"torn": whole[end:cut], "zeros": whole[end : end + 90] + b"\0" * (length - 91) + b"\n",
                "foreign": b'{"something": "else"}\n'}[damage]  # fmt: skip
        (folder / INSPECTED).write_bytes(whole[:end] + tail)
        manifest_for(options(data), folder, Silent())
        assert content(folder) == content(undisturbed)


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_threads_and_their_order_do_not_show(
    data: Path, undisturbed: Path, tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, random_ = inspection.decode_image, random.Random(threads)

    def uneven(encoded: bytes) -> Any:
        if random_.random() < 0.01:
            time.sleep(0.02)
        return decode(encoded)

    monkeypatch.setattr(inspection, "available_cores", lambda: threads)
    monkeypatch.setattr(inspection, "decode_image", uneven)
    manifest_for(options(data), tmp_path / "m", Silent())
    assert content(tmp_path / "m") == content(undisturbed)


@dataclasses.dataclass(frozen=True)
class Thread(Processes):
    """One of several "processes" that meet at a barrier."""

    barrier: threading.Barrier = dataclasses.field(default_factory=lambda: threading.Barrier(1))

    def wait(self) -> None:
        self.barrier.wait(60)


def test_the_first_process_scans_and_the_others_wait_for_it(
    data: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned: list[int] = []
    into = scan._scan_into
    monkeypatch.setattr(scan, "_scan_into", lambda *rest: (scanned.append(1), into(*rest)))
    barrier = threading.Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        ranks = [Thread(rank, 3, rank, barrier) for rank in range(3)]
        found = list(
            pool.map(lambda rank: manifest_for(options(data), tmp_path / "m", Silent(), rank), ranks)
        )
    assert scanned == [1]
    assert content(tmp_path / "m") == content(undisturbed)
    assert found[0] == found[1] == found[2]


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


def test_a_full_disk_is_one_error_and_the_scan_goes_on_afterwards(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands for the disk: the log meets it first, then the manifest."""
    folder = tmp_path / "m"
    sizes = {path.name: path.stat().st_size for path in undisturbed.iterdir()}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, file in ((sizes[INSPECTED] // 2, INSPECTED), (sizes["manifest.jsonl"] - 1, ".*.jsonl")):
        log = folder / INSPECTED
        if file != INSPECTED:  # the log may be as large as it needs to be: it is there already
            log.write_bytes((undisturbed / INSPECTED).read_bytes())
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with pytest.raises(PixartError, match=f"cannot write {folder}/{file}: File too large") as caught:
                manifest_for(options(data), folder, Silent())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "\n" not in str(caught.value)
        assert not (folder / "card.json").exists()
        assert not list(folder.glob(".*partial"))
        assert (undisturbed / INSPECTED).stat().st_size >= log.stat().st_size > 0
    manifest_for(options(data), folder, Silent())
    assert content(folder) == content(undisturbed)


def test_two_scans_into_one_folder_are_refused(data: Path, tmp_path: Path) -> None:
    with (
        open_scan_log(tmp_path / "m"),
        pytest.raises(UserError, match="another process is scanning into it"),
    ):
        manifest_for(options(data), tmp_path / "m", Silent())
    assert len(manifest_for(options(data), tmp_path / "m", Silent()).records) > 0


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
