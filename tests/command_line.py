"""The command line in the process of a test: its exit code, and what it prints where."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pixart_cli import app


def pixart(*args: object) -> int:
    """Run `pixart ARGS`; its exit code."""
    with pytest.raises(SystemExit) as caught:
        app.main([str(arg) for arg in args])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def pixart_json(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, dict[str, Any], str]:
    """Run `pixart ARGS --json`; its exit code, the object on stdout (empty: none), and stderr."""
    code = pixart(*args, "--json")
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


def error_of(capsys: pytest.CaptureFixture[str], *args: object, code: int = 2) -> str:
    """Run a command that fails; its one line on stderr."""
    assert pixart(*args) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("pixart: error: ")]
    return line.removeprefix("pixart: error: ")


def shown_info(path: Path, columns: int = 80) -> str:
    """What `pixart convert --info` shows about `path`, all of it within `columns`."""
    result = CliRunner().invoke(app.app, ["convert", "--info", str(path)], env={"COLUMNS": str(columns)})
    assert result.exit_code == 0, result.stderr
    assert max(len(line) for line in result.stdout.splitlines()) <= columns
    return result.stdout
