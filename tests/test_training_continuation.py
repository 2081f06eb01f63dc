"""Continuing a training: what may change, what is refused, which state is taken, who may train there."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from stores import write_tiny_store
from tiny_trainings import At, assert_same_weights, broken, make_step, states, weights

from pixart_cli.errors import user_errors
from pixart_core.artifacts.card import Card
from pixart_core.errors import UnfinishedError, UserError
from pixart_core.launch import BEGAN, began, boot_seconds
from pixart_core.progress import Silent
from pixart_core.recipe.chain import run_chain
from pixart_core.recipe.plan import plan_chain
from pixart_core.recipe.records import Records
from pixart_core.recipe.schema import Recipe
from pixart_core.recipe.token_routing import TokenRouting
from pixart_core.recipe.training import ModelOptions, MuonOptions
from pixart_core.training import budget
from pixart_core.training.budget import Clock
from pixart_core.training.log import read_rows, without_clock
from pixart_core.training.loop import run_training


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return write_tiny_store(tmp_path_factory.mktemp("store") / "features")


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


def test_a_run_of_an_earlier_pixart_continues_as_if_it_had_said_the_defaults(tmp_path, store, whole) -> None:
    run = tmp_path / "run"
    broken(make_step(store), run, 3)
    marker = json.loads((run / ".run.json").read_text())
    del marker["options"]["loss_weighting"]
    (run / ".run.json").write_text(json.dumps(marker | {"options": marker["options"] | {"gone": 1}}))
    with pytest.raises(UserError, match="loss_weighting: 'uniform' before, 'min_snr' now"):
        run_training(make_step(store, loss_weighting="min_snr"), run, Silent())
    heard = At()
    run_training(make_step(store), run, heard)
    assert not any("other settings" in line for line in heard.lines)
    assert_same_weights(run, whole)


def test_a_damaged_record_of_the_recipe_is_told(tmp_path, store) -> None:
    broken(make_step(store), tmp_path / "run", 3)
    (tmp_path / "run/.run.json").write_text("{")
    with pytest.raises(UserError, match=r"\.run\.json is damaged .* remove it"):
        run_training(make_step(store), tmp_path / "run", Silent())


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


def test_the_age_of_a_process_is_what_the_system_says(monkeypatch) -> None:
    first = boot_seconds() - began()
    theirs = time.time() - psutil.Process().create_time()
    assert first - 2 <= theirs <= boot_seconds() - began() + 2  # psutil rounds the start of the system
    monkeypatch.setenv(BEGAN, "5")
    assert began() == 5.0


def test_a_chain_whose_training_ends_early_is_to_be_continued(tmp_path, store, whole) -> None:
    recipe = Recipe(name="r", output=None, steps={"train": make_step(store)})

    def run(listener: At) -> None:
        run_chain(recipe, tmp_path / "chain", {"train": run_training}, listener)

    with pytest.raises(SystemExit) as ended, user_errors():
        run(ask(signal.SIGTERM))
    assert ended.value.code == 75
    heard = At()
    run(heard)
    assert any("was interrupted; continues" in line for line in heard.lines)
    assert_same_weights(tmp_path / "chain/train", whole)


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
