"""Processes of one launch, really launched by torchrun's own agent."""

import json
import os
import subprocess
import sys
from pathlib import Path

from pixart_core.launch import Processes, connect

WORKER = """
import json, os, sys
from pathlib import Path
from pixart_core.launch import connect

me = connect()
folder = Path(sys.argv[1])
if me.first:
    coming = os.open(folder / "pipe", os.O_RDWR)
    for _ in range(me.count - 1):  # until the others are about to wait
        os.read(coming, 1)
    (folder / "plan").write_text("made by the first")
else:
    os.write(os.open(folder / "pipe", os.O_WRONLY), b"x")
me.wait()
seen = (folder / "plan").read_text()
(folder / f"{me.rank}.json").write_text(json.dumps([me.count, list(me.share(range(7))), seen]))
"""


def test_alone_one_process_has_everything_and_waits_for_nobody() -> None:
    me = connect()
    assert me == Processes(0, 1, 0)
    assert me.first
    assert list(me.share([1, 2, 3])) == [1, 2, 3]
    me.wait()


def test_launched_processes_share_the_items_and_wait_for_the_first(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=3", "--rdzv_backend=c10d"]
    done = subprocess.run(
        [*command, "--rdzv_endpoint=localhost:0", str(script), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert [count for count, _, _ in found] == [3, 3, 3]
    assert [share for _, share, _ in found] == [[0, 3, 6], [1, 4], [2, 5]]
    assert {seen for _, _, seen in found} == {"made by the first"}
