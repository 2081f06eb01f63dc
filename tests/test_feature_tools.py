"""The flags of `pixart extract-features` beside encoding: each mistake is one line that says what to do."""

import json
from pathlib import Path

import pytest
from extraction import make_step, write_encoders, write_pictures

from pixart_cli.app import main
from pixart_core.encoders.extract import run_extraction
from pixart_core.progress import Silent


def pixart(*args: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["extract-features", *args])
    return int(stop.value.code or 0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "give --data (or --verify, --export or --import)"),
        (("--verify", "x", "--export", "y"), "--verify and --export are different tasks"),
        (("--data", "x", "--repair"), "--repair goes with --verify STORE"),
        (("--export", "x"), "--export goes with --to (webdataset, hf)"),
        (("--export", "x", "--to", "zip"), "--to: 'zip' is none of webdataset, hf"),
        (("--data", "x", "--to", "hf"), "--export goes with --to"),
        (("--export", "x", "--to", "hf"), "--export needs --output"),
        (("--export", "x", "--to", "hf", "--data", "y"), "--export reads no --data"),
        (("--export", "x", "--to", "hf", "--output", "y", "--dry-run"), "no use for --dry-run"),
        (("--verify", "x", "--data", "y"), "--verify has no use for --data"),
        (("--verify", "x", "--repair", "--limit", "3"), "--verify has no use for --limit"),
        (("--verify", "nowhere"), "nowhere holds no feature store"),
        (("--import", "x"), "--import needs --output"),
        (("--import", "nowhere", "--output", "y"), "nowhere is not a folder"),
        (
            ("--import", ".", "--output", "y"),
            "holds no WebDataset archives (*.tar), no Hugging Face data set",
        ),
        (("--import", "x", "--output", "y", "storag=int8"), "storag: unknown key, did you mean storage?"),
        (("--data", "x", "--only", "both"), "--only: expected"),
        (("--data", "x", "resolutions=32"), "resolutions"),
        (("--export", "nowhere", "--to", "hf", "--output", "y"), "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    args: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert pixart(*args) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("pixart: error: ")]
    assert message in line
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_store_goes_out_and_comes_back_by_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "data", range(9))
    write_encoders(tmp_path / "encoders")
    run_extraction(make_step(tmp_path / "data", tmp_path / "encoders"), tmp_path / "store", Silent())
    capsys.readouterr()
    assert pixart("--export", "store", "--to", "webdataset", "--output", "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 9
    assert pixart("--import", "out", "--output", "back", "--json", "storage=int8") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["count"], told["source"], told["storage"]) == (9, "webdataset", "int8")
    assert pixart("--import", "out", "--output", "store") == 2
    assert "store holds features made by pixart extract-features" in capsys.readouterr().err
    assert pixart("--import", "out", "--output", "back", "storage=fp16") == 2
    assert "made with other settings" in capsys.readouterr().err
