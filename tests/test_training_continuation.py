"""Continuing a training: what may change, what is refused, which state is taken, who may train there."""

import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from stores import write_tiny_store

from pixart_cli.errors import user_errors
from pixart_core.artifacts.card import Card
from pixart_core.artifacts.lock import only_launch
from pixart_core.artifacts.seal import check_seal, seal
from pixart_core.errors import PixartError, UnfinishedError, UserError
from pixart_core.launch import BEGAN, began, boot_seconds
from pixart_core.progress import Silent
from pixart_core.recipe.plan import plan_chain
from pixart_core.recipe.records import Records
from pixart_core.recipe.schema import Recipe
from pixart_core.recipe.token_routing import TokenRouting
from pixart_core.recipe.training import ModelOptions, MuonOptions, TrainStep
from pixart_core.training import budget
from pixart_core.training.budget import Clock
from pixart_core.training.log import read_rows, without_clock
from pixart_core.training.loop import run_training
from pixart_core.training.state import saved_states, step_of


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return write_tiny_store(tmp_path_factory.mktemp("store") / "features")


def make_step(store: Path | str, **changes) -> TrainStep:
    options = {
        "features": str(store),
        "model": ModelOptions(num_layers=1, num_attention_heads=2, attention_head_dim=8, sample_size=8),
        "max_train_steps": 6,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 2,
        "optimizer": MuonOptions(),
        "max_grad_norm": 1.0,
        "ema_decay": 0.9,
        "checkpointing_steps": 2,
        "log_every": 2,
        "page": False,
    }
    return TrainStep(**(options | changes))


class At(Silent):
    """Does something after a step of this sitting, and keeps what is said."""

    def __init__(self, step: int = -1, then=lambda: None) -> None:
        self.left, self.then = step, then
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)

    def advance(self, task: str, units: int = 1, note: str = "") -> None:
        self.left -= units
        if self.left == 0 and units:
            self.then()


class PulledError(Exception):
    """The plug was pulled."""


def pull() -> None:
    raise PulledError


def broken(step: TrainStep, output: Path, after: int) -> None:
    with pytest.raises(PulledError):
        run_training(step, output, At(after, pull))


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "transformer/diffusion_pytorch_model.safetensors")


def assert_same_weights(a: Path, b: Path) -> None:
    assert weights(a).keys() == weights(b).keys()
    assert [name for name, tensor in weights(a).items() if not torch.equal(tensor, weights(b)[name])] == []


def states(output: Path) -> list[int]:
    return [step_of(state) for state in saved_states(output / "checkpoints")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, store) -> Path:
    """The undisturbed run of `make_step(store)`."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run_training(make_step(store), output, Silent())
    return output


def test_what_no_weight_depends_on_may_change_and_is_told_and_kept(tmp_path, store, whole) -> None:
    broken(make_step(store), tmp_path / "run", 3)
    heard = At()
    run_training(make_step(store, checkpoints_total_limit=1, log_every=3), tmp_path / "run", heard)
    assert_same_weights(tmp_path / "run", whole)
    assert "checkpoints_total_limit 2 -> 1, log_every 2 -> 3" in "".join(heard.lines)
    history = read_rows(tmp_path / "run/history.jsonl")
    assert [row["step"] for row in history] == [0, 2]
    assert history[1]["changed"] == {"checkpoints_total_limit": [2, 1], "log_every": [2, 3]}
    assert history[1]["torch"] == torch.__version__
    assert Card.read(tmp_path / "run", "checkpoint").fingerprint == Card.read(whole, "checkpoint").fingerprint
    assert states(tmp_path / "run") == [6]


def test_smaller_micro_batches_change_the_rounding_and_nothing_else(tmp_path, store, whole) -> None:
    broken(make_step(store), tmp_path / "run", 3)
    heard = At()
    run_training(make_step(store, micro_batch_size=1), tmp_path / "run", heard)
    assert any(
        "the draws stay the same" in line and "micro_batch_size 2 -> 1" in line for line in heard.lines
    )
    for name, tensor in weights(tmp_path / "run").items():
        # Muon orthogonalises in bf16.
        torch.testing.assert_close(tensor, weights(whole)[name], rtol=0, atol=1e-3, msg=name)


COSINE = {"lr_scheduler": "cosine"}


@pytest.mark.parametrize(
    ("before", "changes", "message"),
    [
        ({}, {"optimizer": MuonOptions(momentum=0.5)}, r"optimizer\.momentum: 0\.95 before, 0\.5 now"),
        ({}, {"learning_rate": 0.5, "seed": 3}, r"learning_rate: 0\.001 before, 0\.5 now; seed: 0 before"),
        ({}, {"max_train_steps": 1}, "at step 2 already"),
        (
            {"lr_scheduler": "cosine", "lr_warmup_steps": 0},
            {"lr_scheduler": "cosine", "lr_warmup_steps": 0, "max_train_steps": 9},
            "other learning rates",
        ),
        (
            {"token_routing": TokenRouting(start_block=1, off_for_last=0.8)},
            {"token_routing": TokenRouting(start_block=1, off_for_last=0.8), "max_train_steps": 20},
            "would have had token_routing",
        ),
    ],
)
def test_what_would_be_another_training_is_refused_by_name(tmp_path, store, before, changes, message) -> None:
    model = ModelOptions(num_layers=3, num_attention_heads=2, attention_head_dim=8, sample_size=8)
    broken(make_step(store, model=model, **before), tmp_path / "run", 3)
    kept = (tmp_path / "run/recipe.yaml").read_text()
    with pytest.raises(UserError, match=message):
        run_training(make_step(store, **({"model": model} | changes)), tmp_path / "run", Silent())
    assert (tmp_path / "run/recipe.yaml").read_text() == kept


def test_other_features_are_refused(tmp_path, store) -> None:
    broken(make_step(store), tmp_path / "run", 3)
    card = json.loads((store / "card.json").read_text())
    other = write_tiny_store(tmp_path / "other")
    (other / "card.json").write_text(json.dumps(card | {"fingerprint": "0" * 16}))
    with pytest.raises(UserError, match=r"input features: '\w{16}' before, '0{16}' now"):
        run_training(make_step(other), tmp_path / "run", Silent())


def test_a_finished_training_is_left_alone_and_a_longer_one_continues_it(tmp_path, store, whole) -> None:
    run = tmp_path / "run"
    first = run_training(make_step(store, max_train_steps=4), run, Silent())
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    heard = At()
    again = run_training(make_step(store, max_train_steps=4, log_every=1), run, heard)
    assert again | {"seconds": 0} == first | {"seconds": 0}
    assert any("is finished (4 steps): nothing to do" in line for line in heard.lines)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    run_training(make_step(store), run, heard)
    assert any("max_train_steps 4 -> 6" in line for line in heard.lines)
    assert_same_weights(run, whole)
    assert [without_clock(row) for row in read_rows(run / "log.jsonl")] == [
        without_clock(row) for row in read_rows(whole / "log.jsonl")
    ]
    assert Card.read(run, "checkpoint") == Card.read(whole, "checkpoint")


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_any_harm_to_any_file_of_a_state_is_found(tmp_path, whole, harm) -> None:
    newest = saved_states(whole / "checkpoints")[-1]
    check_seal(newest)
    for file in newest.iterdir():
        copy = tmp_path / file.name / newest.name
        copy.mkdir(parents=True)
        for other in newest.iterdir():
            (copy / other.name).write_bytes(other.read_bytes())
        harmed = copy / file.name
        if harm == "remove":
            harmed.unlink()
        else:
            data = bytearray(harmed.read_bytes())
            data[len(data) // 2] ^= 1
            harmed.write_bytes(data[:-1] if harm == "cut" else data)
        with pytest.raises(ValueError, match=r"state\.json" if file.name == "state.json" else file.name):
            check_seal(copy)


def test_a_flipped_bit_costs_one_state_and_no_exactness(tmp_path, store, whole) -> None:
    broken(make_step(store), tmp_path / "run", 5)
    newest = saved_states(tmp_path / "run/checkpoints")[-1] / "optimizer.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 64
    newest.write_bytes(data)
    heard = At()
    run_training(make_step(store), tmp_path / "run", heard)
    damaged = [line for line in heard.lines if "damaged" in line]
    assert len(damaged) == 1
    assert "step_00000004" in damaged[0]
    assert "optimizer.safetensors" in damaged[0]
    assert_same_weights(tmp_path / "run", whole)


def test_damaged_states_never_push_out_a_good_one(tmp_path, store, whole) -> None:
    run = tmp_path / "run"
    broken(make_step(store), run, 5)
    assert states(run) == [2, 4]
    (saved_states(run / "checkpoints")[-1] / "counters.json").write_text("{}")
    # Goes back to step 2; what it saves at step 3 comes before the damaged one in number.
    broken(make_step(store, checkpointing_steps=1, checkpoints_total_limit=1), run, 4)
    assert states(run) == [3]
    run_training(make_step(store), run, Silent())
    assert_same_weights(run, whole)


def test_a_full_disk_while_saving_leaves_the_states_before_and_one_line(tmp_path, store, whole) -> None:
    run, limit = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limit[1]))

    try:
        with pytest.raises(PixartError, match=r"cannot save .*File too large; the states before it are kept"):
            run_training(make_step(store), run, At(3, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert states(run) == [2]
    assert not list((run / "checkpoints").glob(".*"))
    run_training(make_step(store), run, Silent())
    assert_same_weights(run, whole)
    assert [row["step"] for row in read_rows(run / "log.jsonl")] == [2, 4, 6]


HOLD = """
import sys
from pathlib import Path
from pixart_core.artifacts.lock import only_launch
with only_launch(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_trainings_do_not_share_a_folder_and_a_killed_one_frees_it(tmp_path, store) -> None:
    run = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"another run is writing to it .process {holder.pid} on "):
            run_training(make_step(store), run, Silent())
        assert not (run / "recipe.yaml").exists()
        holder.kill()
    assert (run / ".lock").exists()
    run_training(make_step(store, max_train_steps=1), run, Silent())
    assert not (run / ".lock").exists()


def test_a_file_system_without_locks_is_told_and_does_not_stop_anybody(tmp_path, monkeypatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    told: list[str] = []
    with only_launch(tmp_path, told.append):
        pass
    assert len(told) == 1
    assert "no locks" in told[0]


def ask(number: int) -> At:
    return At(3, lambda: os.kill(os.getpid(), number))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_a_run_after_its_step_with_the_state_saved(tmp_path, store, whole, number) -> None:
    step = make_step(store, checkpointing_steps=100)
    code = 130 if number == signal.SIGINT else 75
    with pytest.raises(SystemExit) as ended, user_errors():
        run_training(step, tmp_path / "run", ask(number))
    assert ended.value.code == code
    assert states(tmp_path / "run") == [3]
    run_training(step, tmp_path / "run", Silent())
    assert_same_weights(tmp_path / "run", whole)


def test_however_short_the_time_every_sitting_gets_further(tmp_path, store, whole, monkeypatch) -> None:
    monkeypatch.setattr(budget, "began", lambda: boot_seconds() - 3600)
    step = make_step(store, max_train_time="30m", checkpointing_steps=100)
    for number in range(1, 6):
        with pytest.raises(UnfinishedError, match=f"max_train_time 30m at step {number} of 6; run the same"):
            run_training(step, tmp_path / "run", Silent())
        assert states(tmp_path / "run")[-1] == number
    run_training(step, tmp_path / "run", Silent())
    assert_same_weights(tmp_path / "run", whole)


def test_the_clock_keeps_a_step_and_a_save_in_reserve(monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(budget, "began", lambda: 480.0)
    monkeypatch.setattr(budget, "boot_seconds", lambda: 500.0)
    clock = Clock(make_step("x", max_train_time="2m", checkpointing_minutes=1))

    def passes(seconds: float) -> None:
        now[0] += seconds

    passes(10)
    clock.stepped()
    passes(15)
    clock.saved()
    assert (clock.is_over, clock.asks_to_save) == (False, False)
    passes(4)
    clock.stepped()
    # 49 s are over; a step of 10 and a save of 15 fit until 95.
    passes(95 - 49 - 0.5)
    assert not clock.is_over
    passes(0.5)
    assert clock.is_over
    passes(60 - 50 - 0.5)
    assert not clock.asks_to_save
    passes(0.5)
    assert clock.asks_to_save
    assert not Clock(make_step("x")).is_over


def test_milestones_stay(tmp_path, store) -> None:
    step = make_step(store, checkpointing_steps=1, checkpoints_total_limit=1, checkpoints_keep_every=2)
    run_training(step.model_copy(update={"max_train_steps": 5}), tmp_path / "run", Silent())
    assert states(tmp_path / "run") == [2, 4, 5]


def test_states_are_saved_by_time(tmp_path, store) -> None:
    step = make_step(store, checkpointing_steps=100, checkpointing_minutes=1e-9, checkpoints_total_limit=9)
    run_training(step, tmp_path / "run", Silent())
    assert states(tmp_path / "run") == [1, 2, 3, 4, 5, 6]


def test_the_age_of_a_process_is_what_the_system_says(monkeypatch) -> None:
    first = boot_seconds() - began()
    theirs = time.time() - psutil.Process().create_time()
    assert first - 2 <= theirs <= boot_seconds() - began() + 2  # psutil rounds the start of the system
    monkeypatch.setenv(BEGAN, "5")
    assert began() == 5.0


def test_a_chain_goes_on_with_a_step_whose_options_may_change(tmp_path) -> None:
    def planned(**changes) -> str:
        step = make_step("x", **changes)
        plan = plan_chain(Recipe(name="r", output=None, steps={"train": step}), tmp_path)
        Records(tmp_path).write_started("train", plan[0].record)
        return plan[0].action

    assert planned() == "run"
    assert planned(log_every=7, max_train_time="3h") == "continue"
    assert planned(micro_batch_size=1) == "continue"
    assert planned(learning_rate=1.0) == "run"


def test_a_seal_does_not_cover_itself(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    seal(tmp_path)
    seal(tmp_path)
    check_seal(tmp_path)
