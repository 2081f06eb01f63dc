"""A process of a launch ends with its exit code, whatever its threads do."""

import os
import subprocess
import sys

import pytest

# A thread that Python, when it is taken apart, would end in the middle of C++ or wait for.
ENDING = """
import atexit, sys, threading, time
from pixart_cli.ending import ending_at_once
threading.Thread(target=time.sleep, args=(600,)).start()
atexit.register(print, "exit functions ran")
with ending_at_once():
    print("worked")
    {end}
"""


def ended(end: str, count: int) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"WORLD_SIZE": str(count), "PYTHONDONTWRITEBYTECODE": "1"}
    script = ENDING.format(end=end) if count > 1 else ENDING.format(end=end).replace("600", "0")
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("end", "code"), [("pass", 0), ("sys.exit()", 0), ("sys.exit(75)", 75)])
def test_it_ends_with_its_code_after_the_exit_functions(end, code, count) -> None:
    done = ended(end, count)
    assert (done.returncode, done.stdout, done.stderr) == (code, "worked\nexit functions ran\n", "")


def test_a_bug_keeps_its_traceback() -> None:
    done = ended("1 / 0", 1)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
