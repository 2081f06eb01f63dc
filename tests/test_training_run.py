"""Whole training runs: killed and continued, refused, damaged, loaded by diffusers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from safetensors.torch import load_file
from stores import write_tiny_store

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.features import FeatureStore
from pixart_core.errors import UserError
from pixart_core.models.files import load_transformer
from pixart_core.models.resolution import Resolution, change_resolution
from pixart_core.progress import Silent
from pixart_core.recipe.training import ModelOptions, MuonOptions, Positions, TrainStep
from pixart_core.training.log import without_clock
from pixart_core.training.loop import run_training
from pixart_core.training.order import BatchOrder
from pixart_core.training.state import saved_states

MODEL = ModelOptions(num_layers=2, num_attention_heads=2, attention_head_dim=8, sample_size=8)


def make_step(store: Path, **changes) -> TrainStep:
    options = {
        "features": str(store),
        "model": MODEL,
        "max_train_steps": 12,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 2,
        "optimizer": MuonOptions(),
        "max_grad_norm": 1.0,
        "ema_decay": 0.9,
        "checkpointing_steps": 3,
        "log_every": 5,
    }
    return TrainStep(**(options | changes))


@pytest.fixture
def store(tmp_path) -> Path:
    return write_tiny_store(tmp_path / "features")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "transformer/diffusion_pytorch_model.safetensors")


def assert_equal_runs(a: Path, b: Path) -> None:
    for name, tensor in weights(a).items():
        assert torch.equal(tensor, weights(b)[name]), name
    rows = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (a, b)]
    timeless = [[without_clock(row) for row in run] for run in rows]
    assert timeless[0] == timeless[1]
    assert Card.read(a, "checkpoint").fingerprint == Card.read(b, "checkpoint").fingerprint


def test_a_run_learns_and_loads_in_diffusers(tmp_path, store) -> None:
    result = run_training(make_step(store, max_train_steps=40), tmp_path / "run", Silent())
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(5, 41, 5))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert result["images"] == rows[-1]["images"] == 160
    theirs = PixArtTransformer2DModel.from_pretrained(tmp_path / "run/transformer").eval()
    ours = load_transformer(tmp_path / "run").eval()
    latents, text, t = torch.randn(1, 3, 8, 8), torch.randn(1, 4, 8), torch.tensor([7])
    torch.testing.assert_close(ours(latents, t, text), theirs(latents, text, t).sample, rtol=0, atol=5e-6)
    assert len(saved_states(tmp_path / "run/checkpoints")) == 2


def test_two_runs_with_one_seed_are_one_run_and_another_seed_is_another(tmp_path, store) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_training(make_step(store, seed=seed), tmp_path / name, Silent())
    assert_equal_runs(tmp_path / "a", tmp_path / "b")
    a, c = weights(tmp_path / "a"), weights(tmp_path / "c")
    assert any(not torch.equal(a[name], c[name]) for name in a)


class Stop(Silent):
    """Ends a run at a step, as an exception out of nowhere would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, task: str, units: int = 1, note: str = "") -> None:
        self.left -= units
        if self.left < 0:
            raise RuntimeError("pulled the plug")


@pytest.mark.parametrize("conditioning", ["text", "class"])
def test_a_run_continued_after_a_crash_ends_as_if_nothing_happened(tmp_path, store, conditioning) -> None:
    step = make_step(store, model=MODEL.model_copy(update={"conditioning": conditioning}))
    run_training(step, tmp_path / "whole", Silent())
    for after in (2, 5, 11):
        with pytest.raises(RuntimeError, match="plug"):
            run_training(step, tmp_path / "broken", Stop(after))
    run_training(step, tmp_path / "broken", Silent())
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")


RUN = """
import os, sys
from pathlib import Path
from pixart_core.progress import Silent
from pixart_core.recipe.schema import TrainStep
from pixart_core.training.loop import run_training
class Killer(Silent):
    def __init__(self, number, after):
        self.number, self.left = number, after

    def advance(self, task, units=1, note=""):
        self.left -= units
        if self.left == 0:
            os.kill(os.getpid(), self.number)
output, *kill = sys.argv[2:]
progress = Killer(*map(int, kill)) if kill else Silent()
run_training(TrainStep.model_validate_json(sys.argv[1]), Path(output), progress)
"""


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_continues_bit_for_bit(tmp_path, store, kill) -> None:
    step = make_step(store, max_train_steps=60, checkpointing_steps=7)
    command = [sys.executable, "-c", RUN, step.model_dump_json(), str(tmp_path / "killed")]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run([*command, str(int(kill)), "17"], env=environment, stderr=subprocess.DEVNULL)
    assert killed.returncode != 0
    assert not (tmp_path / "killed/card.json").exists()
    # Asked politely, it saves the step it is at: nothing is done twice.
    newest = saved_states(tmp_path / "killed/checkpoints")[-1].name
    assert newest == ("step_00000017" if kill == signal.SIGTERM else "step_00000014")
    subprocess.run(command, env=environment, check=True)

    run_training(step, tmp_path / "whole", Silent())
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")


def test_a_damaged_state_is_passed_over(tmp_path, store) -> None:
    step = make_step(store)
    run_training(step, tmp_path / "whole", Silent())
    with pytest.raises(RuntimeError, match="plug"):
        run_training(step, tmp_path / "broken", Stop(8))
    newest = saved_states(tmp_path / "broken/checkpoints")[-1] / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    said: list[str] = []
    listener = Silent()
    listener.say = said.append  # type: ignore[method-assign]
    run_training(step, tmp_path / "broken", listener)
    assert any("damaged" in line for line in said)
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")


def test_other_options_for_a_started_run_are_refused(tmp_path, store) -> None:
    with pytest.raises(RuntimeError, match="plug"):
        run_training(make_step(store), tmp_path / "run", Stop(4))
    with pytest.raises(UserError, match=r"learning_rate: 0\.001 before, 0\.5 now"):
        run_training(make_step(store, learning_rate=0.5), tmp_path / "run", Silent())


@pytest.mark.parametrize("batch", [4, 64])
def test_a_batch_that_images_repeat_in_is_told(tmp_path, store, batch) -> None:
    said: list[str] = []
    listener = Silent()
    listener.say = said.append  # type: ignore[method-assign]
    step = make_step(store, global_batch_size=batch, max_train_steps=1, micro_batch_size=2)
    run_training(step, tmp_path / "run", listener)
    order = BatchOrder(FeatureStore(store).buckets, batch, step.seed)
    repeated: dict[tuple[int, int], list[bool]] = {}
    for bucket, rows in (order[number] for number in range(40)):
        repeated.setdefault(bucket, []).append(len(set(rows.tolist())) < batch)
    # A batch across two passes may hold an image twice; where all do, the bucket is smaller than a batch.
    repeats = any(map(all, repeated.values()))
    assert repeats == any("images repeat within a batch" in line for line in said)
    assert repeats == (not any("batches an epoch" in line for line in said))
    assert repeats == (batch == 64)


def test_stage_three_starts_from_stage_two_at_another_resolution(tmp_path, store) -> None:
    run_training(make_step(store), tmp_path / "two", Silent())
    larger = write_tiny_store(tmp_path / "larger", {(32, 32): 4, (24, 40): 5})
    step = make_step(
        larger,
        model=None,
        init=str(tmp_path / "two"),
        positions=Positions(sample_size=16, interpolation_scale=2.0),
        max_train_steps=2,
    )
    run_training(step, tmp_path / "three", Silent())
    config = load_transformer(tmp_path / "three").config
    assert (config.sample_size, config.interpolation_scale) == (16, 2.0)


def test_positions_with_micro_conditions_start_exact(tmp_path, store) -> None:
    options = MODEL.model_copy(update={"attention_head_dim": 6})
    run_training(make_step(store, model=options), tmp_path / "run", Silent())
    before = load_transformer(tmp_path / "run").eval()
    after = change_resolution(before, Resolution(8, use_additional_conditions=True)).eval()
    latents, text, t = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8), torch.tensor([7, 900])
    sizes = {"resolution": torch.tensor([[512.0, 640.0]] * 2), "aspect_ratio": torch.tensor([[0.8]] * 2)}
    assert torch.equal(before(latents, t, text), after(latents, t, text, **sizes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": MODEL.model_copy(update={"patch_size": 8})}, "do not divide"),
        ({"model": MODEL.model_copy(update={"attention_head_dim": 5})}, "multiple of 4"),
        ({"model": None, "init": "nowhere"}, "nowhere"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(tmp_path, store, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        run_training(make_step(store, **changes), tmp_path / "run", Silent())


def test_a_missing_store_is_one_clear_error(tmp_path) -> None:
    with pytest.raises(UserError, match="nothing-here"):
        run_training(make_step(tmp_path / "nothing-here"), tmp_path / "run", Silent())


def test_a_torn_log_and_a_failure_before_the_first_state_lock_nothing(tmp_path, store) -> None:
    with pytest.raises(RuntimeError, match="plug"):
        run_training(make_step(store), tmp_path / "run", Stop(1))
    with (tmp_path / "run/log.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    smaller = make_step(store, micro_batch_size=1)
    run_training(smaller, tmp_path / "run", Silent())
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 12]


def test_new_size_embedders_come_from_the_seed(tmp_path, store) -> None:
    options = MODEL.model_copy(update={"attention_head_dim": 6})
    run_training(make_step(store, model=options), tmp_path / "base", Silent())
    step = make_step(
        store,
        model=None,
        init=str(tmp_path / "base"),
        positions=Positions(sample_size=8, use_additional_conditions=True),
        max_train_steps=2,
    )
    for name in ("a", "b"):
        torch.randn(7)  # whatever was drawn before
        run_training(step, tmp_path / name, Silent())
    assert_equal_runs(tmp_path / "a", tmp_path / "b")


def test_the_unconditional_caption_is_inherited(tmp_path, store) -> None:
    run_training(make_step(store, uncond="learned"), tmp_path / "first", Silent())
    learned = (tmp_path / "first/uncond.safetensors").read_bytes()
    step = make_step(store, model=None, init=str(tmp_path / "first"), max_train_steps=2)
    run_training(step, tmp_path / "second", Silent())
    assert (tmp_path / "second/uncond.safetensors").read_bytes() == learned
    assert Card.read(tmp_path / "second", "checkpoint").details["model"]["uncond"] == "learned"


def test_accelerates_own_configuration_does_not_change_a_run(tmp_path, store, monkeypatch) -> None:
    run_training(make_step(store), tmp_path / "plain", Silent())
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    run_training(make_step(store), tmp_path / "set", Silent())
    assert_equal_runs(tmp_path / "plain", tmp_path / "set")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes"):
        run_training(make_step(store), tmp_path / "two", Silent())


def test_class_conditioning_needs_a_class_on_every_sample(tmp_path) -> None:
    folder = write_tiny_store(tmp_path / "features", unlabelled=2)
    step = make_step(folder, model=MODEL.model_copy(update={"conditioning": "class"}))
    with pytest.raises(UserError, match="4 of 17 samples have no class"):
        run_training(step, tmp_path / "run", Silent())
