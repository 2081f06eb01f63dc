"""Steps that fail: what is told, what is untouched, and how a run goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stores import write_tiny_store
from torch import Tensor

from pixart_core.artifacts.features import FeatureStore
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.failing import NonFiniteOptions
from pixart_core.recipe.training import AdamWOptions, ModelOptions, TrainStep
from pixart_core.training import feed, step
from pixart_core.training.loop import run_training
from pixart_core.training.order import BatchOrder
from pixart_core.training.recover import FAILURES
from pixart_core.training.step import NonFiniteError

MODEL = ModelOptions(num_layers=1, num_attention_heads=2, attention_head_dim=8, sample_size=8)


class Listener(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def make_step(store: Path, **changes: Any) -> TrainStep:
    options: dict[str, Any] = {
        "features": str(store),
        "model": MODEL,
        "max_train_steps": 9,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 0,
        # Adam divides rounding by rounding where eps is tiny.
        "optimizer": AdamWOptions(eps=1e-3),
        "max_grad_norm": 1.0,
        "ema_decay": 0.9,
        "checkpointing_steps": 3,
        "log_every": 1,
        "page": False,
    }
    return TrainStep(**(options | changes))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_tiny_store(tmp_path / "features")


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "transformer/diffusion_pytorch_model.safetensors")


def poison(monkeypatch: pytest.MonkeyPatch, *numbers: int, once: bool = False) -> None:
    """Make the last sample of these optimiser steps (from 0) not finite; with `once` at their first try."""
    made, tried = feed.make_batch, set()

    def make_batch(*args: Any, **options: Any) -> Any:
        batch = made(*args, **options)
        number = options["step"]
        if number in numbers and number not in tried and 3 in list(args[1]):
            if once:
                tried.add(number)
            batch.noise[-1] = float("inf")
        return batch

    monkeypatch.setattr(feed, "make_batch", make_batch)


def bucket_and_last(store: Path, number: int) -> tuple[str, str]:
    """(bucket, id of the last sample) of an optimiser step."""
    opened = FeatureStore(store)
    bucket, indices = BatchOrder(opened.buckets, 4, 0)[number]
    name = f"{bucket[0]}x{bucket[1]}"
    return name, opened.batch(bucket, [int(indices[3])], None).ids[0]


def test_a_step_that_is_not_finite_is_skipped_and_told_of(store, tmp_path, monkeypatch) -> None:
    poison(monkeypatch, 4)
    listener = Listener()
    result = run_training(make_step(store), tmp_path / "run", listener)
    bucket, name = bucket_and_last(store, 4)
    (failure,) = rows(tmp_path / "run", FAILURES)
    assert (failure["step"], failure["bucket"], failure["samples"]) == (5, bucket, [name])
    assert (failure["action"], failure["damaged_features"]) == ("skipped", [])
    assert any(f"step 5 ({bucket})" in line and f"not finite for {name}" in line for line in listener.said)
    log = rows(tmp_path / "run", "log.jsonl")
    assert [row["step"] for row in log] == [1, 2, 3, 4, 6, 7, 8, 9]
    assert [row.get("lost_steps") for row in log] == [None] * 4 + [1] * 4
    assert result["steps"] == 9
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())


def test_a_skipped_step_leaves_the_weights_as_they_were(store, tmp_path, monkeypatch) -> None:
    run_training(make_step(store, max_train_steps=4), tmp_path / "four", Silent())
    poison(monkeypatch, 4)
    run_training(make_step(store, max_train_steps=5), tmp_path / "five", Silent())
    four, five = weights(tmp_path / "four"), weights(tmp_path / "five")
    assert all(torch.equal(four[name], five[name]) for name in four)


def test_a_glitch_is_rolled_back_and_leaves_no_trace_in_the_weights(store, tmp_path, monkeypatch) -> None:
    run_training(make_step(store), tmp_path / "whole", Silent())
    with monkeypatch.context() as patch:
        poison(patch, 4, once=True)
        step = make_step(store, non_finite=NonFiniteOptions(action="rollback"))
        run_training(step, tmp_path / "run", Silent())
    whole, run = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], run[name]) for name in whole)
    assert [row["action"] for row in rows(tmp_path / "run", FAILURES)] == ["rolled back"]
    assert [row["step"] for row in rows(tmp_path / "run", "log.jsonl")] == list(range(1, 10))


def test_a_step_that_fails_again_after_the_rollback_is_skipped(store, tmp_path, monkeypatch) -> None:
    poison(monkeypatch, 4)
    run_training(make_step(store), tmp_path / "skip", Silent())
    step = make_step(store, non_finite=NonFiniteOptions(action="rollback"))
    run_training(step, tmp_path / "run", Silent())
    assert [row["action"] for row in rows(tmp_path / "run", FAILURES)] == ["rolled back", "skipped"]
    skipped, run = weights(tmp_path / "skip"), weights(tmp_path / "run")
    assert all(torch.equal(skipped[name], run[name]) for name in run)


def test_stop_keeps_the_last_state_and_another_policy_goes_on(store, tmp_path, monkeypatch) -> None:
    poison(monkeypatch, 4)
    run_training(make_step(store), tmp_path / "skip", Silent())
    stop = make_step(store, non_finite=NonFiniteOptions(action="stop"))
    for _ in range(2):
        with pytest.raises(NonFiniteError, match=r"step 5 .* non_finite\.action=skip"):
            run_training(stop, tmp_path / "run", Silent())
    run_training(make_step(store), tmp_path / "run", Silent())
    skipped, run = weights(tmp_path / "skip"), weights(tmp_path / "run")
    assert all(torch.equal(skipped[name], run[name]) for name in run)


@pytest.mark.parametrize(
    ("limits", "bad", "message", "steps"),
    [
        ({"in_a_row": 2}, (1, 3, 5, 6), r"in_a_row", 7),
        ({"in_all": 3, "in_a_row": 9}, (1, 3, 6), r"in_all", 7),
    ],
)
def test_a_budget_ends_what_goes_wrong(store, tmp_path, monkeypatch, limits, bad, message, steps) -> None:
    poison(monkeypatch, *bad)
    step = make_step(store, non_finite=NonFiniteOptions(**limits))
    with pytest.raises(NonFiniteError, match=rf"step {steps} .*{message}"):
        run_training(step, tmp_path / "run", Silent())
    # What was skipped before the last state still counts when the run is continued.
    with pytest.raises(NonFiniteError, match=rf"step {steps} .*{message}"):
        run_training(step, tmp_path / "run", Silent())


def test_features_that_are_not_finite_are_named(store, tmp_path, monkeypatch) -> None:
    real = FeatureStore.batch
    _, name = bucket_and_last(store, 0)

    def batch(self: FeatureStore, *args: Any, **options: Any) -> Any:
        features = real(self, *args, **options)
        for place, id_ in enumerate(features.ids):
            if id_ == name:
                features.mean[place, 0, 0, 0] = float("nan")
        return features

    monkeypatch.setattr(FeatureStore, "batch", batch)
    stop = make_step(store, non_finite=NonFiniteOptions(action="stop"))
    with pytest.raises(NonFiniteError, match=f"stored features of {name} are not finite"):
        run_training(stop, tmp_path / "run", Silent())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:120] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_names_batch_bucket_and_settings_that_fit(store, tmp_path, monkeypatch, error) -> None:
    real = step.diffusion_loss
    calls = []

    def fails(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:  # the first micro-batch of step 5
            raise error
        return real(*args, **options)

    whole = tmp_path / "whole"
    run_training(make_step(store, micro_batch_size=1), whole, Silent())
    monkeypatch.setattr(step, "diffusion_loss", fails)
    bucket, _ = bucket_and_last(store, 4)
    with pytest.raises(UserError) as told:
        run_training(make_step(store), tmp_path / "run", Silent())
    message = str(told.value)
    assert f"2 images of {bucket} at a time" in message
    assert "micro_batch_size=1 (4 a step" in message
    assert "gradient_checkpointing=full" in message
    assert "\n" not in message
    run_training(make_step(store, micro_batch_size=1), tmp_path / "run", Silent())
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], tensor, rtol=0, atol=1e-5)


def test_another_runtime_error_is_not_taken_for_memory(store, tmp_path, monkeypatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(step, "diffusion_loss", fails)
    with pytest.raises(RuntimeError, match="mat1"):
        run_training(make_step(store), tmp_path / "run", Silent())


def test_a_damaged_shard_ends_the_run_and_after_its_repair_it_goes_on(store, tmp_path) -> None:
    whole = tmp_path / "whole"
    run_training(make_step(store), whole, Silent())
    shard = max(store.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    good = shard.read_bytes()

    class Interrupts(Silent):
        """Ends the run under way, after its first state."""

        def advance(self, task: str, units: int = 1, note: str = "") -> None:
            if note and (tmp_path / "run/checkpoints/step_00000003").exists():
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(make_step(store), tmp_path / "run", Interrupts())
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is gone; extract the features again"):
        run_training(make_step(store), tmp_path / "run", Silent())
    shard.write_bytes(good[:-10])
    with pytest.raises(UserError, match=f"{shard.name} has .* bytes instead of"):
        run_training(make_step(store), tmp_path / "run", Silent())
    shard.write_bytes(good)
    run_training(make_step(store), tmp_path / "run", Silent())
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(tmp_path / "run")[name], tensor)


class Plug(Silent):
    """Ends a run at a step, as an exception out of nowhere would."""

    def __init__(self, at: int) -> None:
        self.left = at

    def advance(self, task: str, units: int = 1, note: str = "") -> None:
        self.left -= units
        if self.left <= 0:
            raise RuntimeError("pulled the plug")


def test_ended_around_skipped_steps_and_continued_it_ends_the_same(store, tmp_path, monkeypatch) -> None:
    poison(monkeypatch, 4, 6)
    run_training(make_step(store), tmp_path / "whole", Silent())
    for at in (5, 7):
        with pytest.raises(RuntimeError, match="plug"):
            run_training(make_step(store), tmp_path / "broken", Plug(at))
    run_training(make_step(store), tmp_path / "broken", Silent())
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    for folder in ("whole", "broken"):
        assert [row["step"] for row in rows(tmp_path / folder, FAILURES)] == [5, 7]
