"""Run a command and watch its memory from outside."""

import dataclasses
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SAMPLE_SECONDS = 0.02


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a finished process took.

    Attributes:
        peak_rss: largest resident set in bytes, as the kernel counts it (ru_maxrss); pages of files that
            were mapped into memory are in it, although the kernel takes them back when it needs them.
        peak_anonymous: largest sampled RssAnon in bytes: what only swap could take back.
        seconds, cpu_seconds: wall clock and processor time.
        output, errors: stdout and stderr.
    """

    peak_rss: int
    peak_anonymous: int
    seconds: float
    cpu_seconds: float
    output: str
    errors: str = ""


def run_watched(command: Sequence[str]) -> Usage:
    """Run `command` to its end.

    Raises:
        RuntimeError: it failed; its stderr is in the message.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        begin = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        status = Path(f"/proc/{process.pid}/status")
        peak_anonymous = 0
        while True:
            pid, code, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak_anonymous = max(peak_anonymous, _anonymous(status))
            time.sleep(SAMPLE_SECONDS)
        seconds = time.monotonic() - begin
        process.returncode = os.waitstatus_to_exitcode(code)
        texts = [file.seek(0) or file.read() for file in (output, errors)]
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {texts[1]}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Usage(usage.ru_maxrss * 1024, peak_anonymous, seconds, cpu_seconds, *texts)


def _anonymous(status: Path) -> int:
    try:
        found = re.search(r"^RssAnon:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
