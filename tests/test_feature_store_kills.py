"""Laws of interrupted extractions: killed anywhere, on a full disk, or made by several processes at once,
a feature store ends with the same bytes. The children are forked where torch has no threads yet."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stores import files, small_source

from pixart_core.artifacts.feature_check import verify
from pixart_core.artifacts.feature_index import INDEX
from pixart_core.artifacts.lock import only_launch
from pixart_core.errors import UserError
from pixart_core.progress import Silent

CHILDREN = """
import json, os, random, resource, sys
from pathlib import Path
import torch
from counted_kills import kill_at_call
from stores import CARD, small_source
from pixart_core.errors import PixartError
torch.set_num_threads(1)
source = small_source(40, shard_size=4)
draws = random.Random(0)
# Each call, of Python or of C (write, fsync and rename among them), is a place to die.
WRITING = ("publish.py", "feature_files.py", "feature_index.py", "feature_plan.py", "feature_writer.py")

def fork(work):
    child = os.fork()
    if child:
        return child
    work()
    sys.setprofile(None)
    os._exit(0)

def killed(child):
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, status
    return os.WIFSIGNALED(status)

def files_in(folder):
    return sum(path.name[0] != "." for path in folder.iterdir())

def one_process(folder):
    def extract(limit):
        kill_at_call(limit, WRITING)
        source.extract(folder)

    deaths = []
    while len(deaths) < 30:
        limit = draws.randrange(1, draws.choice([300, 2500]))
        if killed(fork(lambda: extract(limit))):
            deaths.append(files_in(folder))
        else:  # finished: begin again
            for path in folder.iterdir():
                path.unlink()
    source.extract(folder)
    return deaths

def three_processes(folder):
    def share(writer, rank, limit):
        kill_at_call(limit, WRITING)
        for kind in ("text", "image"):
            for shard in writer.missing(kind)[rank::3]:
                source.write(writer, shard)

    deaths = []
    finished = False
    while not finished:
        writers = [source.open(folder, first=rank == 0) for rank in range(3)]
        limits = [draws.randrange(1, 600) for _ in writers]
        children = [
            fork(lambda: share(writer, rank, limit))
            for rank, (writer, limit) in enumerate(zip(writers, limits))
        ]
        deaths += [files_in(folder) for child in children if killed(child)]
        finished = writers[0].finish(CARD)
    return deaths

def full_disk(folder):
    def extract(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            source.extract(folder)
        except PixartError as error:
            (folder / "told").open("a").write(f"{limit} {error}\\n")

    for limit in (50, 200, 1000, 2000, 2500, 3000, 4000):
        assert not killed(fork(lambda: extract(limit)))
        assert not list(folder.glob(".*"))
    source.extract(folder)
    told = (folder / "told").read_text().splitlines()
    (folder / "told").unlink()
    return told

results = {}
for scenario in (one_process, three_processes, full_disk):
    folder = Path(sys.argv[1]) / scenario.__name__
    folder.mkdir()
    results[scenario.__name__] = scenario(folder)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    small_source(40, shard_size=4).extract(folder)
    return files(folder)


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> "Children":
    """The folders that the children left, and what was seen."""
    here, folder = Path(__file__).parent, tmp_path_factory.mktemp("children")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{here}:{here.parent}"}
    command = [sys.executable, "-c", CHILDREN, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


Children = tuple[Path, dict[str, list[Any]]]


def test_a_killed_extraction_ends_with_the_same_bytes(children: Children, whole: dict[str, bytes]) -> None:
    folder, results = children
    deaths = results["one_process"]
    assert len(deaths) >= 20
    assert len(set(deaths)) >= 6  # with so many different numbers of files there
    assert files(folder / "one_process") == whole


def test_three_processes_that_are_killed_make_the_same_store(
    children: Children, whole: dict[str, bytes]
) -> None:
    folder, results = children
    assert len(results["three_processes"]) >= 6
    assert files(folder / "three_processes") == whole


def test_a_full_disk_is_one_clear_error_and_loses_nothing(
    children: Children, whole: dict[str, bytes]
) -> None:
    folder, results = children
    told = results["full_disk"]
    assert len(told) >= 4
    for line in told:
        found = re.fullmatch(r"\d+ cannot write (.+): (File too large|the disk is full)", line)
        assert found is not None, line
        assert Path(found[1]).name in whole
    assert files(folder / "full_disk") == whole


def test_a_line_that_was_cut_short_counts_as_not_written(tmp_path: Path, whole: dict[str, bytes]) -> None:
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "card.json").unlink()
    lines = whole[INDEX].splitlines(keepends=True)
    source = small_source(40, shard_size=4)
    for cut in (1, 30, len(lines[3]) - 1):
        (tmp_path / INDEX).write_bytes(b"".join(lines[:3]) + lines[3][:cut])
        (tmp_path / ".text-00002.safetensors.123.partial").write_bytes(b"half")
        assert [damage.shard for damage in verify(tmp_path, Silent())] == [INDEX]
        writer = source.open(tmp_path)
        assert writer.missing("text")[0].name == json.loads(lines[3])["name"]
        source.extract(tmp_path)
        assert files(tmp_path) == whole
        (tmp_path / "card.json").unlink()


def test_a_second_launch_on_a_folder_is_refused(tmp_path: Path) -> None:
    with only_launch(tmp_path):
        with pytest.raises(UserError, match="another run is writing to it"), only_launch(tmp_path):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with only_launch(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
