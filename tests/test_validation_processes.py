"""Validation in several processes: shared out, and the same as in one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stores import write_tiny_store
from test_validation import make_step, rows
from test_validation_images import encoders, options
from training_ranks import Launcher

from pixart_core.recipe.optimizers import AdamWOptions
from pixart_core.training.validation_images import drawn_steps

__all__ = ["encoders"]  # a fixture
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def launch() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_store(tmp_path_factory.mktemp("data") / "features", {(16, 16): 20, (8, 24): 14})


def train(launch: Launcher, folder: Path, store: Path, count: int, **changes: Any) -> Path:
    step = make_step(store, max_train_steps=4, optimizer=AdamWOptions(), **changes)
    assert launch(step, folder, count)["codes"] == [0] * count
    return folder


def test_every_number_of_processes_validates_and_draws_the_same(
    launch: Launcher, store: Path, encoders: Path, tmp_path: Path
) -> None:
    # Seven samples in batches of two and three bands: no number of processes divides them.
    watched = options(encoders, every=2, samples=7, bands=3, raw_weights=True, batch_size=1)
    # Updates that fp32 rounds away: what the processes have trained is equal to the last bit.
    fixed: dict[str, Any] = {"validation": watched, "learning_rate": 1e-37}
    alone = train(launch, tmp_path / "alone", store, 1, **fixed)
    for count, mode in ((2, "ddp"), (2, "fsdp2")):
        run = train(launch, tmp_path / mode, store, count, distributed=mode, **fixed)
        assert rows(run) == rows(alone)
        assert [row["step"] for row in rows(run)] == [2, 2, 4, 4]
        for step, folder in drawn_steps(alone).items():
            for file in sorted(folder.glob("[0-9].png")):
                assert file.read_bytes() == (drawn_steps(run)[step] / file.name).read_bytes()


@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_validation_leaves_no_trace_in_a_training_of_several_processes(
    launch: Launcher, store: Path, encoders: Path, tmp_path: Path, mode: str
) -> None:
    watched = options(encoders, every=1, samples=3, bands=1, raw_weights=True)
    plain = train(launch, tmp_path / "plain", store, 2, distributed=mode)
    seen = train(launch, tmp_path / "seen", store, 2, distributed=mode, validation=watched)
    assert (plain / TRANSFORMER).read_bytes() == (seen / TRANSFORMER).read_bytes()
    assert len(rows(seen)) == 8


def test_a_validation_that_cannot_begin_in_one_process_is_left_out_in_all(
    launch: Launcher, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "run/validation.jsonl").mkdir(parents=True)  # only the first process wants to write there
    run = train(launch, tmp_path / "run", store, 2, validation={"every": 2, "samples": 2, "bands": 2})
    assert (run / TRANSFORMER).exists()
