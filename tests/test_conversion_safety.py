"""Laws of bad days: foreign code is never run, damage is named, a killed or full disk leaves nothing half."""

import argparse
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import original_layouts as original
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_encoders import write_tiny_encoders
from typer.testing import CliRunner

from pixart_cli.app import app
from pixart_core.conversion.detect import load_any
from pixart_core.conversion.info import describe
from pixart_core.errors import UserError

HEADS = f"num_attention_heads={original.HEADS}"


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def save_legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_shards(content: object, path: Path) -> None:
    """As a pickled shard of a diffusers folder."""
    path.mkdir()
    (path / "config.json").write_text('{"_class_name": "PixArtTransformer2DModel"}')
    torch.save(content, path / "a.bin")
    index = '{"weight_map": {"pos_embed.proj.weight": "a.bin"}}'
    (path / "diffusion_pytorch_model.bin.index.json").write_text(index)


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_shards])
@pytest.mark.parametrize("place", ["alone", "beside", "optimizer", "namespace", "name"])
def test_code_in_a_file_is_never_run(tmp_path: Path, save: Callable, place: str) -> None:
    weights, evil = original.make_weights("dit"), Evil(tmp_path / "marker")
    content = {
        "alone": evil,
        "beside": {"state_dict": weights | {"x": evil}},
        "optimizer": {"state_dict": weights, "optimizer": {"state": [0, {"step": evil}]}},
        "namespace": {"ema": weights, "args": argparse.Namespace(lr=1e-4, callback=evil)},
        "name": {"ema": weights, evil: 1},
    }[place]
    path = tmp_path / "evil.pth"
    save(content, path)
    for read in (load_any, describe):
        with pytest.raises(
            UserError, match=r"(evil\.pth|a\.bin) holds Python objects .*could run code"
        ) as error:
            read(path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "marker").exists()
    pickle.loads(pickle.dumps(evil))  # the marker does appear where a pickle is trusted
    assert (tmp_path / "marker").exists()


def test_a_plain_pickle_is_not_run(tmp_path: Path) -> None:
    for protocol in (0, 2, 4):
        (tmp_path / "old.pt").write_bytes(pickle.dumps(Evil(tmp_path / "marker"), protocol))
        with pytest.raises(UserError, match=r"old\.pt"):
            load_any(tmp_path / "old.pt")
    assert not (tmp_path / "marker").exists()


def save_safetensors(content: dict, path: Path) -> None:
    save_file(content["state_dict"], path)


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_safetensors])
def test_a_file_that_is_cut_anywhere_is_named(tmp_path: Path, save: Callable) -> None:
    save({"state_dict": original.make_weights("pixart")}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    size = len(whole)
    ends = [0, 1, 2, 7, 8, 9, 16, 63, 100, 1000, *range(1, size, size // 20), size - 100, size - 22, size - 1]
    for end in ends:
        (tmp_path / "cut.pth").write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"cut\.pth") as error:
            describe(tmp_path / "cut.pth")
        assert "\n" not in str(error.value), end
        assert len(str(error.value)) < 400, end


def wrong_files(folder: Path) -> dict[str, str]:
    """Files that a path may name by mistake, and what the message says of each."""
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "list.json").write_text("[1]")
    (folder / "empty.pth").write_bytes(b"")
    (folder / "pointer.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (folder / "page.pth").write_bytes(b"\n<!DOCTYPE html><html>")
    (folder / "quantised.gguf").write_bytes(b"GGUF" + bytes(60))
    (folder / "text.pth").write_bytes(b"some text that is long enough to be read as a header")
    Image.new("RGB", (4, 4)).save(folder / "picture.png")
    Image.new("RGB", (4, 4)).save(folder / "picture.jpg")
    np.save(folder / "array.npy", np.zeros(3))
    np.savez(folder / "arrays.npz", a=np.zeros(3))
    with zipfile.ZipFile(folder / "archive.pth", "w") as archive:
        archive.writestr("notes/read.txt", "no weights")
    torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "program.pt")
    torch.save([torch.zeros(2)], folder / "list.pt")
    torch.save({"epoch": 3, "lr": 0.1}, folder / "numbers.pt")
    torch.save(torch.nn.Linear(2, 2), folder / "module.pt")
    return {
        "config.json": "JSON.*give the folder",
        "list.json": "JSON",
        "empty.pth": r"empty; expected a \.pt",
        "pointer.pth": "git lfs pull",
        "page.pth": "web page",
        "quantised.gguf": "GGUF",
        "text.pth": r"no PyTorch file; expected a \.pt",
        "picture.png": "picture",
        "picture.jpg": "picture",
        "array.npy": "NumPy",
        "arrays.npz": "no PyTorch file",
        "archive.pth": "no PyTorch file",
        "program.pt": "TorchScript",
        "list.pt": "holds a list, expected a dict",
        "numbers.pt": "no weights.*found epoch, lr",
        "module.pt": "Linear.*could run code",
    }


def test_a_wrong_file_is_named_with_what_was_expected(tmp_path: Path) -> None:
    for name, message in wrong_files(tmp_path).items():
        for read in (load_any, describe):
            with pytest.raises(UserError, match=f"{name}.*{message}") as error:
                read(tmp_path / name)
            assert "\n" not in str(error.value)


def test_a_wrong_folder_is_named_with_what_was_expected(tmp_path: Path) -> None:
    folders = {
        "nothing": ({}, "holds no transformer; expected an official"),
        "several": ({"a.pth": "", "b.pt": ""}, r"a\.pth, b\.pt: name one"),
        "encoder": ({"config.json": '{"architectures": ["T5EncoderModel"]}'}, "holds T5EncoderModel"),
        "vae": ({"config.json": '{"_class_name": "AutoencoderKL"}'}, "holds AutoencoderKL"),
        "other": ({"model_index.json": '{"_class_name": "FluxPipeline"}'}, "FluxPipeline; expected a PixArt"),
        "half": (
            {"config.json": '{"_class_name": "PixArtTransformer2DModel"}'},
            "holds no diffusion_pytorch",
        ),
        "damaged": ({"config.json": '{"_class_name'}, r"config\.json is damaged"),
        "chain": ({".chain/x": ""}, "name one of its steps"),
    }
    for name, (files, message) in folders.items():
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        (tmp_path / name).mkdir(exist_ok=True)
        with pytest.raises(UserError, match=message) as error:
            describe(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_dry_run_says_what_the_source_leaves_open(tmp_path: Path) -> None:
    weights = original.make_weights("pixart")
    del weights["pos_embed"]
    torch.save(weights, tmp_path / "a.pth")
    command = ["convert", "--from", str(tmp_path / "a.pth"), "--to", "pixart", "--dry-run"]
    command += ["--output", str(tmp_path / "x")]
    for given, missing in (
        ([], "sample_size and num_attention_heads"),
        ([f"num_attention_heads={original.HEADS}"], "does not tell sample_size; give sample_size="),
    ):
        result = CliRunner().invoke(app, [*command, *given])
        assert (result.exit_code, missing in result.stderr) == (2, True), result.stderr
    result = CliRunner().invoke(app, [*command, f"num_attention_heads={original.HEADS}", "sample_size=8"])
    assert result.exit_code == 0
    assert not (tmp_path / "x").exists()


@pytest.fixture
def pixart_file(tmp_path: Path) -> Path:
    torch.save({"state_dict": original.make_weights("pixart")}, tmp_path / "a.pth")
    return tmp_path / "a.pth"


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.mark.parametrize("to", ["pixart", "official", "diffusers"])
@pytest.mark.parametrize("limit", [1_000, 100_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, pixart_file: Path, encoders: Path, to: str, limit: int
) -> None:
    parts = [f"--vae={encoders}", f"--text-encoder={encoders}"] if to == "diffusers" else []
    output = tmp_path / "made" / "x"
    output.parent.mkdir()
    arguments = ["convert", "--from", str(pixart_file), "--to", to, "--output", str(output), HEADS, *parts]
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Writes beyond the limit fail as those on a full disk do, only with another reason.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    error = result.stderr.splitlines()[-1]
    assert (result.exit_code, error.count("pixart: error: cannot write")) == (1, 1), result.stderr
    assert "File too large" in error
    assert list(output.parent.iterdir()) == []
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0


KILLED = """
import os, sys
from pathlib import Path
from pixart_core.conversion.convert import run_conversion
from pixart_core.progress import Silent
from pixart_core.recipe.schema import ConvertStep

source, output = sys.argv[1:]
step = ConvertStep(source=source, to="pixart", num_attention_heads=4, max_shard_size="1MB")
replace, survivors = Path.replace, []
for moment in range(20):
    child = os.fork()
    if child == 0:
        left = [moment]
        def killed(self, target):
            if left[0] == 0:
                os.kill(os.getpid(), 9)
            left[0] -= 1
            return replace(self, target)
        Path.replace = Path.rename = killed  # every file and folder gets its name by one of the two
        run_conversion(step, Path(output), Silent())
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WTERMSIG(status) == 9, status
    assert not Path(output).exists(), f"half a result after {moment} renames"
print(moment)
"""


def test_kill_9_at_any_moment_leaves_no_half_result_and_the_next_run_works(
    tmp_path: Path, pixart_file: Path
) -> None:
    output = tmp_path / "made" / "x"
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(pixart_file), str(output)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 4  # killed at least before weights, config, card and folder got their names
    assert [path.name for path in output.parent.iterdir()] == ["x"]
    model = load_any(output).model
    expected = original.make_weights("pixart")["final_layer.linear.weight"]
    assert torch.equal(model.proj_out.weight, expected)
