"""Laws of checkpoints on the hub: fetched in part, by commit, used again offline, refused in one line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, serve_hub
from safetensors.torch import load_file, save_file
from tiny_pipelines import write_tiny_pipeline

from pixart_core.artifacts.provenance import Provenance
from pixart_core.encoders.hub import is_hub_id, split_revision

# The client reads its settings when it is imported, so commands run in a process of their own: one for all.
SESSION = """
import contextlib, io, json, sys
from pixart_cli import app
for line in sys.stdin:
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            sys.argv = ["pixart", *json.loads(line)]
            app.main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
    print(json.dumps([code, stdout.getvalue(), stderr.getvalue()]), flush=True)
"""
FAST = ["--set", "num_inference_steps=2"]
IMAGE = "images/000000.png"


class Session:
    """Runs commands of pixart in `folder`, with `hub` as its hub and an empty cache."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SESSION],
            cwd=folder,
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        code, stdout, stderr = json.loads(self.process.stdout.readline())
        return code, stdout, stderr

    def sample(self, checkpoint: str, output: str, *more: str) -> tuple[int, str, str]:
        return self.run(
            "sample", "--checkpoint", checkpoint, "a red circle", *FAST, "--output", output, *more
        )

    def draw(self, checkpoint: str, output: str) -> Provenance:
        """`sample` without an error: what the image tells."""
        code, _, stderr = self.sample(checkpoint, output)
        assert code == 0, stderr
        return Provenance.read(self.folder / output / IMAGE)


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Iterator[Session]:
    with serve_hub() as hub:
        session = Session(hub, tmp_path_factory.mktemp("session"))
        yield session
        session.process.communicate()


@pytest.fixture
def hub(session) -> Iterator[Hub]:
    session.hub.fetched.clear()
    yield session.hub
    session.hub.down = False


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """With what released repositories hold besides: half precision, pickles, a picture."""
    folder = write_tiny_pipeline(tmp_path_factory.mktemp("model"))
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    half = {name: tensor.half() for name, tensor in load_file(weights).items()}
    save_file(half, weights.with_suffix(".fp16.safetensors"))
    for extra in ("transformer/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "teaser.png"):
        (folder / extra).write_bytes(b"never needed")
    return folder


def test_a_hub_id_draws_what_its_folder_draws_from_the_files_that_are_needed(session, hub, pipeline) -> None:
    commit = hub.add("org/model", pipeline)
    code, stdout, stderr = session.sample("org/model", "dry", "--dry-run", "--json")
    assert code == 0, stderr
    assert "org/model" in stdout
    assert not [name for name in hub.fetched if name.endswith(".safetensors")]

    remote, local = session.draw("org/model", "remote"), session.draw(str(pipeline), "local")
    assert remote.settings.weights == local.settings.weights
    here = f"org/model@{commit}"
    assert remote.settings.checkpoint_hub == remote.find_checkpoint() == here
    card = json.loads((session.folder / "remote/card.json").read_text())["details"]
    assert [card["checkpoint_hub"], card["model"]["vae"], card["model"]["text_encoder"]] == [here] * 3
    weights = {name.removeprefix("org/model/") for name in hub.fetched if not name.endswith(".json")}
    assert weights == {
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    assert len(hub.fetched) == len(set(hub.fetched))

    code, _, stderr = session.run("sample", "--from", f"remote/{IMAGE}", "--check", "--tolerance", "0")
    assert code == 0, stderr


def test_what_was_fetched_is_used_without_the_hub_and_what_was_not_is_told(session, hub, pipeline) -> None:
    hub.add("org/whole", pipeline)
    hub.add("org/part", pipeline)
    session.draw("org/whole", "online")
    assert session.sample("org/part", "x", "--dry-run")[0] == 0
    hub.down = True
    session.draw("org/whole", "offline")
    online, offline = ((session.folder / name / IMAGE).read_bytes() for name in ("online", "offline"))
    assert online == offline
    code, _, stderr = session.sample("org/part", "partial")
    assert code == 2
    assert "org/part has no transformer/diffusion_pytorch_model.safetensors in the cache" in stderr
    code, _, stderr = session.sample("org/never", "never")
    assert code == 2
    assert "'org/never': no folder of that name here, not in the Hugging Face cache, and the hub" in stderr


def test_a_revision_is_drawn_and_a_branch_that_moved_is_not_continued_with(
    session, hub, pipeline, tmp_path
) -> None:
    first = hub.add("org/moving", pipeline)
    begun = session.draw("org/moving", "begun")
    (session.folder / "begun/card.json").unlink()
    second = shutil.copytree(pipeline, tmp_path / "second")
    weights = second / "transformer/diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(weights).items()}, weights)
    hub.add("org/moving", second)
    code, _, stderr = session.sample("org/moving", "begun")
    assert code == 2
    assert "begun holds samples of another checkpoint" in stderr
    newest, pinned = session.draw("org/moving", "newest"), session.draw(f"org/moving@{first}", "pinned")
    hashes = [told.settings.weights_hash for told in (begun, newest, pinned)]
    assert hashes[0] == hashes[2] != hashes[1]


def test_mistakes_are_one_line_each(session, hub, pipeline, tmp_path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    pickled = shutil.copytree(pipeline, tmp_path / "pickled")
    for file in (pickled / "transformer").glob("*.safetensors"):
        file.unlink()
    for id_, folder in (("org/v", pipeline), ("org/o", other), ("org/p", pickled), ("org/gated", pipeline)):
        hub.add(id_, folder)
    hub.gated.add("org/gated")
    mistakes = {
        "org/none": "the hub has no such model (a private one needs `hf auth login`)",
        "org/v@v9": "the hub has no revision v9 of it",
        "org/gated": "accept its terms at huggingface.co/org/gated",
        "org/o": "org/o is a StableDiffusionPipeline without a transformer/",
        "org/p": "`pixart convert --from org/p --to diffusers` reads fp16 and .bin, too",
    }
    for source, words in mistakes.items():
        code, _, stderr = session.sample(source, "mistake")
        assert code == 2, (source, stderr)
        (line,) = (line for line in stderr.splitlines() if line.startswith("pixart: error"))
        assert words in line
        assert source in line
    assert list((session.folder / "mistake").rglob("*.png")) == []


def test_a_repository_with_a_transformer_alone_takes_the_released_encoders(
    session, hub, pipeline, tmp_path
) -> None:
    shutil.copytree(pipeline / "transformer", tmp_path / "alone/transformer")
    hub.add("org/alone", tmp_path / "alone")
    hub.add("stabilityai/sd-vae-ft-ema", pipeline / "vae")
    assert session.sample("org/alone", "dry", "--dry-run")[0] == 0
    code, _, stderr = session.sample("org/alone", "alone")
    assert code == 2
    assert "text_encoder 'google/t5-v1_1-xxl': no folder of that name here" in stderr


def test_only_an_owner_and_a_name_are_a_hub_id(tmp_path, monkeypatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("org/model", "org/model@v1", "org/model@refs/pr/3"):
        assert is_hub_id(name), name
    # A mistyped path is told as such: its folder is here.
    for path in ("runs/x", "./org/model", "/org/model", "a/b/c", "model", "org/", "runs"):
        assert not is_hub_id(path), path
    assert split_revision("org/model@refs/pr/3") == ("org/model", "refs/pr/3")
    assert split_revision("org/model") == ("org/model", None)
