"""Trainings of several processes (gloo, on the CPU) against the same training of one."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stores import write_tiny_store
from torch.distributed import HashStore
from torch.nn.parallel import DistributedDataParallel
from training_ranks import Launcher

from pixart_core.artifacts.lock import only_launch
from pixart_core.recipe.optimizers import AdamWOptions, CameOptions, MuonOptions
from pixart_core.recipe.token_routing import TokenRouting
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.training.log import without_clock
from pixart_core.training.parallel import reducing
from pixart_core.training.state import saved_states

MODEL = ModelOptions(num_layers=2, num_attention_heads=2, attention_head_dim=8, sample_size=8)
CLASSES = MODEL.model_copy(update={"conditioning": "class"})
KINDS: dict[str, dict[str, Any]] = {
    "text, muon": {"optimizer": MuonOptions(), "caption_dropout": 0.3},
    "class, adamw": {
        "optimizer": AdamWOptions(),
        "model": CLASSES,
        "caption_dropout": 0.3,
        "token_routing": TokenRouting(start_block=0, end_block=1, off_for_last=0.3),
    },
}


@pytest.fixture(scope="module")
def launch() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return write_tiny_store(tmp_path_factory.mktemp("data") / "features", {(16, 16): 20, (8, 24): 14})


def make_step(store: Path, **changes: Any) -> TrainStep:
    options = {
        "features": str(store),
        "model": MODEL,
        "max_train_steps": 6,
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 2,
        "optimizer": AdamWOptions(),
        "max_grad_norm": 0.5,
        "ema_decay": 0.9,
        "checkpointing_steps": 3,
        "log_every": 1,
    }
    return TrainStep(**(options | changes))


@pytest.fixture(scope="module")
def alone(launch, store, tmp_path_factory) -> dict[str, Path]:
    """Each kind of training in one process."""
    folder = tmp_path_factory.mktemp("alone")
    for number, changes in enumerate(KINDS.values()):
        assert launch(make_step(store, **changes), folder / str(number), 1)["codes"] == [0]
    return {kind: folder / str(number) for number, kind in enumerate(KINDS)}


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "transformer/diffusion_pytorch_model.safetensors")


def assert_same_training(run: Path, other: Path, weight_error: float = 2e-6) -> None:
    """Losses and gradient norms of all steps to fp32 rounding, and the averaged weights.

    Muon's iteration is in bf16: what differs in the last bit of fp32 may there round to the other side.
    """
    assert [row["step"] for row in rows(run)] == [row["step"] for row in rows(other)] == [1, 2, 3, 4, 5, 6]
    for one, two in zip(rows(run), rows(other), strict=True):
        assert one["lr"] == two["lr"]
        assert one["loss"] == pytest.approx(two["loss"], rel=2e-6)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=2e-5)
    expected = weights(other)
    for name, tensor in weights(run).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=weight_error, msg=name)


@pytest.mark.parametrize(
    ("kind", "mode", "count"),
    [
        ("text, muon", "ddp", 2),
        ("text, muon", "fsdp2", 2),
        ("class, adamw", "ddp", 4),
        ("class, adamw", "fsdp2", 2),
    ],
)
def test_any_number_of_processes_takes_the_same_steps(
    launch, store, alone, tmp_path, kind, mode, count
) -> None:
    step = make_step(store, distributed=mode, **KINDS[kind])
    assert launch(step, tmp_path / "run", count)["codes"] == [0] * count
    assert_same_training(tmp_path / "run", alone[kind], 2e-4 if "muon" in kind else 2e-6)


def test_checkpointing_and_bf16_go_with_fsdp2(launch, store, tmp_path) -> None:
    step = make_step(store, mixed_precision="bf16", gradient_checkpointing="full", max_train_steps=3)
    assert launch(step, tmp_path / "alone", 1)["codes"] == [0]
    sharded = step.model_copy(update={"distributed": "fsdp2"})
    assert launch(sharded, tmp_path / "sharded", 2)["codes"] == [0, 0]
    for one, two in zip(rows(tmp_path / "alone"), rows(tmp_path / "sharded"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)  # bf16 has three digits
    state = load_file(saved_states(tmp_path / "sharded/checkpoints")[-1] / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_gradients_are_averaged_once_an_optimiser_step() -> None:
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        model = DistributedDataParallel(torch.nn.Linear(4, 4))
        averaged = []

        def hook(state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
            averaged.append(bucket.buffer())
            future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        model.register_comm_hook(None, hook)
        batches = torch.randn(3, 5, 4)
        for number, batch in enumerate(batches, start=1):
            with reducing(model, last=number == 3):
                model(batch).square().mean().backward()
        assert len(averaged) == 1
        whole = torch.nn.Linear(4, 4)
        whole.load_state_dict(model.module.state_dict())
        for batch in batches:
            whole(batch).square().mean().backward()
        torch.testing.assert_close(model.module.weight.grad, whole.weight.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_ddp_fsdp2_and_one_process_continue_each_other(launch, store, alone, tmp_path) -> None:
    kind = "class, adamw"
    step = make_step(store, **KINDS[kind])
    sharded = step.model_copy(update={"distributed": "fsdp2"})
    run = tmp_path / "run"
    # One process is asked to stop, and all stop after the same step.
    assert all(launch(step, run, 2, faults={"1": ["SIGTERM", 2]})["codes"])
    assert all(launch(sharded, run, 2, faults={"0": ["SIGTERM", 3]})["codes"])
    assert [state.name[-1] for state in saved_states(run / "checkpoints")] == ["2", "3"]
    assert all(launch(step, run, 1, faults={"0": ["SIGTERM", 4]})["codes"])
    said = launch(sharded, run, 4)["ranks"][0]["said"]
    assert any("step 4" in line for line in said)
    assert_same_training(run, alone[kind])


def test_a_state_of_fsdp2_holds_whole_tensors_under_plain_names(launch, store, tmp_path) -> None:
    step = make_step(store, max_train_steps=1)
    for mode, count in (("ddp", 1), ("fsdp2", 2)):
        run = tmp_path / mode
        assert launch(step.model_copy(update={"distributed": mode}), run, count)["codes"] == [0] * count
    one, two = (saved_states(tmp_path / mode / "checkpoints")[-1] for mode in ("ddp", "fsdp2"))
    assert {file.name for file in one.iterdir()} == {file.name for file in two.iterdir()}
    for file in one.glob("*.safetensors"):
        plain, gathered = load_file(file), load_file(two / file.name)
        assert plain.keys() == gathered.keys()
        for name, tensor in plain.items():
            torch.testing.assert_close(gathered[name], tensor, rtol=1e-4, atol=2e-6, msg=name)


def test_a_killed_process_ends_all_and_the_run_continues_bit_for_bit(launch, store, tmp_path) -> None:
    # The state of step 3 holds what each process has not logged yet.
    step = make_step(store, log_every=4, **KINDS["class, adamw"])
    ended = launch(step, tmp_path / "run", 2, faults={"1": ["SIGKILL", 4]})
    assert ended["codes"] == [1, -9]
    assert ended["ranks"][0]["error"] == "PixartError"
    assert "rank 1 of 2 is gone" in ended["ranks"][0]["message"]
    assert "run the same command to continue" in ended["ranks"][0]["message"]
    for name in ("run", "whole"):
        assert launch(step, tmp_path / name, 2)["codes"] == [0, 0]
    whole = weights(tmp_path / "whole")
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, whole[name]), name
    run, undisturbed = ([without_clock(row) for row in rows(tmp_path / name)] for name in ("run", "whole"))
    assert run == undisturbed
    assert [row["step"] for row in run] == [4, 6]


def test_one_process_tells_what_went_wrong_in_another(launch, store, tmp_path) -> None:
    ended = launch(make_step(store), tmp_path / "run", 2, faults={"1": ["raise", 2]})
    assert ended["codes"] == [1, 1]
    assert "rank 1 of 2: RuntimeError: pulled the plug" in ended["ranks"][0]["message"]
    came = CameOptions()
    ended = launch(make_step(store, optimizer=came, distributed="fsdp2"), tmp_path / "came", 2)
    assert [rank["error"] for rank in ended["ranks"]] == ["UserError", "ToldElsewhereError"]
    assert "came does not go with FSDP2" in ended["ranks"][0]["message"]


def test_a_full_disk_of_the_first_ends_all_that_gather_for_it(launch, store, alone, tmp_path) -> None:
    kind = "class, adamw"
    step = make_step(store, distributed="fsdp2", checkpointing_steps=2, **KINDS[kind])
    ended = launch(step, tmp_path / "run", 2, faults={"0": ["full_disk", 3]})
    assert [rank["error"] for rank in ended["ranks"]] == ["PixartError", "ToldElsewhereError"]
    assert "step_00000004" in ended["ranks"][0]["message"]
    assert "the states before it are kept" in ended["ranks"][0]["message"]
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000002"]
    assert launch(step, tmp_path / "run", 2)["codes"] == [0, 0]
    assert_same_training(tmp_path / "run", alone[kind])


@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_all_skip_the_step_that_is_not_finite_in_one(launch, store, tmp_path, mode) -> None:
    step = make_step(store, distributed=mode)
    ended = launch(step, tmp_path / "run", 2, faults={"1": ["not_finite", 4]})
    assert ended["codes"] == [0, 0]
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 5, 6]
    (failure,) = [json.loads(line) for line in (tmp_path / "run/failures.jsonl").read_text().splitlines()]
    assert (failure["step"], failure["action"]) == (4, "skipped")
    assert len(failure["samples"]) == step.global_batch_size // 2 // step.micro_batch_size
    assert failure["loss"][1] == "nan"
    assert failure["loss"][0] != "nan"
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())


def test_a_folder_that_is_in_use_is_told_once(launch, store, tmp_path) -> None:
    with only_launch(tmp_path / "run", print):
        ended = launch(make_step(store), tmp_path / "run", 2)
    assert [rank["error"] for rank in ended["ranks"]] == ["UserError", "ToldElsewhereError"]


def test_a_state_that_is_damaged_is_passed_over_by_all(launch, store, alone, tmp_path) -> None:
    kind = "class, adamw"
    step, run = make_step(store, **KINDS[kind]), tmp_path / "run"
    shutil.copytree(alone[kind], run)
    (run / "card.json").unlink()
    shutil.rmtree(run / "transformer")
    newest = saved_states(run / "checkpoints")[-1] / "ema.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    ended = launch(step, run, 2)
    assert ended["codes"] == [0, 0]
    assert any("damaged" in line for line in ended["ranks"][0]["said"])
    assert_same_training(run, alone[kind])
