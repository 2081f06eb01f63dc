"""States of a training on the disk: damaged, too many, no room for them; and who may write there."""

import errno
import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from stores import write_tiny_store
from tiny_trainings import At, assert_same_weights, broken, make_step, states

from pixart_core.artifacts.lock import only_launch
from pixart_core.artifacts.seal import check_seal, seal
from pixart_core.errors import PixartError, UserError
from pixart_core.progress import Silent
from pixart_core.training.log import read_rows
from pixart_core.training.loop import run_training
from pixart_core.training.state import saved_states


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return write_tiny_store(tmp_path_factory.mktemp("store") / "features")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, store) -> Path:
    """The undisturbed run of `make_step(store)`."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run_training(make_step(store), output, Silent())
    return output


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
        with pytest.raises(ValueError, match=None if file.name == "state.json" else file.name):
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


def test_a_training_whose_states_are_all_damaged_is_not_begun_anew(tmp_path, store) -> None:
    run = tmp_path / "run"
    broken(make_step(store), run, 5)
    for state in saved_states(run / "checkpoints"):
        (state / "counters.json").write_text("{}")
    with pytest.raises(UserError, match=r"no state in .*checkpoints can be read .*counters\.json"):
        run_training(make_step(store), run, Silent())
    assert states(run) == [2, 4]


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


def test_milestones_stay(tmp_path, store) -> None:
    step = make_step(store, checkpointing_steps=1, checkpoints_total_limit=1, checkpoints_keep_every=2)
    run_training(step.model_copy(update={"max_train_steps": 5}), tmp_path / "run", Silent())
    assert states(tmp_path / "run") == [2, 4, 5]


def test_states_are_saved_by_time(tmp_path, store) -> None:
    step = make_step(store, checkpointing_steps=100, checkpointing_minutes=1e-9, checkpoints_total_limit=9)
    run_training(step, tmp_path / "run", Silent())
    assert states(tmp_path / "run") == [1, 2, 3, 4, 5, 6]


def test_a_seal_does_not_cover_itself(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    seal(tmp_path)
    seal(tmp_path)
    check_seal(tmp_path)
