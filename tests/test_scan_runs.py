"""A scan can be killed, crowded, starved and repeated, and writes the same."""

import dataclasses
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from broken_images import encode, noise, unusable
from scans import OPTIONS, content, options

from pixart_core.data import inspection, scan, sources
from pixart_core.data.scan import manifest_for
from pixart_core.data.scan_log import INSPECTED, open_scan_log
from pixart_core.errors import PixartError, UserError
from pixart_core.launch import Processes
from pixart_core.progress import Silent

GROUP = 32
# Killed by the next line of the log once so many images are begun; or at a call of that code.
KILLS: list[int | list[Any]] = [
    20, 60, [9, "scan_log.py", "append"], 40, 80, [3, "publish.py", "staged_file", ["c_call"]],
]  # fmt: skip
WORKER = """
import json, os, signal, sys
from pathlib import Path
from counted_kills import kill_at_call
from forked_ranks import fork_ranks
from pixart_core.data import inspection, scan_log, sources
from pixart_core.data.scan import manifest_for
from pixart_core.progress import Silent
from pixart_core.recipe.data import DataOptions

options, folder, group, kills = json.loads(sys.argv[1])
sources._GROUP = group
inspection.available_cores = lambda: 3
decode, append = inspection.decode_image, scan_log.ScanLog.append

def scan(kill):
    begun = []

    def decoded(data):
        begun.append(data)
        return decode(data)

    def appended(self, chunk):
        append(self, chunk)
        if isinstance(kill, int) and len(begun) >= kill:
            os.kill(os.getpid(), signal.SIGKILL)

    inspection.decode_image, scan_log.ScanLog.append = decoded, appended
    if isinstance(kill, list):
        kill_at_call(*kill)
    manifest_for(DataOptions.model_validate(options), Path(folder), Silent())

log = Path(folder, scan_log.INSPECTED)
for kill in kills:
    codes = fork_ranks(1, lambda rank: scan(kill))
    print(json.dumps([*codes, log.read_bytes().count(b"\\n")]))
"""


@pytest.fixture(scope="module", autouse=True)
def small_groups() -> Iterator[None]:
    """Of 32 files instead of 256, so that a small folder takes many lines of the log."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_GROUP", GROUP)
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


def test_killed_at_counted_images_and_calls_a_scan_ends_as_an_undisturbed_one(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """SIGKILL while the log grows and while the result is published; no line is lost or written twice."""
    folder, tests = tmp_path / "m", Path(__file__).parent
    told = json.dumps([{"data": str(data), **OPTIONS}, str(folder), GROUP, KILLS])
    environment = os.environ | {"PYTHONPATH": f"{tests}:{tests.parent}"}
    done = subprocess.run(
        [sys.executable, "-c", WORKER, told], env=environment, capture_output=True, text=True, check=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [code for code, _ in found] == [-9] * len(KILLS)
    lines = [0, *(count for _, count in found)]
    whole = (undisturbed / INSPECTED).read_bytes().count(b"\n")
    assert lines == sorted(lines)
    grown = [after > before for before, after in itertools.pairwise(lines)]
    assert all(more for kill, more in zip(KILLS, grown, strict=True) if isinstance(kill, int))
    assert lines[-2] < lines[-1] == whole
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
        self.barrier.wait(600)


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
