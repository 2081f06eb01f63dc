"""Reading ahead changes when batches are made, and nothing else."""

import gc
import threading
import weakref

import pytest
import torch
from stores import write_tiny_store

from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.training.ahead import DEPTH, ReadAhead
from pixart_core.training.batches import TrainingBatch, pinned
from pixart_core.training.loop import run_training


class Batch:
    def __init__(self, step: int, number: int) -> None:
        self.place = (step, number)


class Maker:
    """Two batches a step; counts them, and can be made to fail at one of them."""

    def __init__(self, fails_at: tuple[int, int] | None = None) -> None:
        self.made: list[tuple[int, int]] = []
        self.threads: set[int] = set()
        self.alive: list[weakref.ref[Batch]] = []
        self.fails_at = fails_at
        self.first = threading.Semaphore(0)

    def __call__(self, step: int):
        for number in range(2):
            if (step, number) == self.fails_at:
                raise UserError(f"no batch {number} of step {step}")
            self.made.append((step, number))
            self.threads.add(threading.get_ident())
            batch = Batch(step, number)
            self.alive.append(weakref.ref(batch))
            self.first.release()
            yield batch
            del batch


def reading() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read ahead"]


def places(batches) -> list[tuple[int, int]]:
    return [batch.place for batch in batches]


def test_the_batches_and_their_order_are_those_without_it() -> None:
    with ReadAhead(Maker(), stop=50) as ahead:
        found = [place for step in range(3, 50) for place in places(ahead.step(step))]
    assert found == [(step, number) for step in range(3, 50) for number in range(2)]


def test_they_are_made_in_one_other_thread_and_before_they_are_asked_for() -> None:
    maker = Maker()
    with ReadAhead(maker, stop=50) as ahead:
        batches = ahead.step(0)
        next(batches)
        for _ in range(1 + DEPTH):  # the one taken, and as many as may wait: waits for them, or for ever
            maker.first.acquire()
        assert len(maker.threads) == 1
        assert threading.get_ident() not in maker.threads
    assert reading() == []
    assert maker.made == [(0, 0), (0, 1), (1, 0)]  # and no more


def test_no_more_are_alive_than_may_wait_and_the_one_in_use() -> None:
    maker, most = Maker(), 0
    with ReadAhead(maker, stop=10) as ahead:
        for step in range(10):
            for batch in ahead.step(step):
                gc.collect()
                most = max(most, sum(reference() is not None for reference in maker.alive))
                del batch
    assert most <= DEPTH + 1


def test_going_back_to_an_earlier_step_begins_there_anew() -> None:
    maker = Maker()
    with ReadAhead(maker, stop=9) as ahead:
        assert places(ahead.step(5)) == [(5, 0), (5, 1)]
        assert places(ahead.step(2)) == [(2, 0), (2, 1)]
        assert places(ahead.step(3)) == [(3, 0), (3, 1)]
        next(ahead.step(4))  # a step that is given up half-way comes whole the next time
        assert places(ahead.step(4)) == [(4, 0), (4, 1)]
        assert len(reading()) == 1


def test_what_goes_wrong_is_told_at_its_batch_and_may_be_tried_again() -> None:
    maker = Maker(fails_at=(1, 1))
    with ReadAhead(maker, stop=9) as ahead:
        assert places(ahead.step(0)) == [(0, 0), (0, 1)]
        batches = ahead.step(1)
        assert next(batches).place == (1, 0)
        with pytest.raises(UserError, match="no batch 1 of step 1"):
            next(batches)
        maker.fails_at = None
        assert places(ahead.step(1)) == [(1, 0), (1, 1)]


def test_the_thread_ends_with_an_error_of_the_run_and_with_the_last_step() -> None:
    def fail() -> None:
        with ReadAhead(Maker(), stop=9) as ahead:
            next(ahead.step(0))
            assert len(reading()) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert reading() == []
    with ReadAhead(Maker(), stop=2) as ahead:
        assert [places(ahead.step(step)) for step in range(2)] == [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]
    assert reading() == []


def test_it_takes_one_core_and_leaves_the_others_threads_as_they_were() -> None:
    threads = torch.get_num_threads()
    counts: list[int] = []
    try:
        torch.set_num_threads(3)
        with ReadAhead(lambda step: [counts.append(torch.get_num_threads())], stop=2) as ahead:
            list(ahead.step(0))
            other = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
            other.start()
            other.join()
        counts.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(threads)
    assert counts[0] == 1
    assert counts[-2:] == [3, 3]


def test_without_a_thread_it_makes_the_same_batches() -> None:
    maker = Maker()
    with ReadAhead(maker, stop=9, threaded=False) as ahead:
        assert places(ahead.step(5)) == [(5, 0), (5, 1)]
        assert places(ahead.step(2)) == [(2, 0), (2, 1)]
        assert reading() == []
    assert maker.threads == {threading.get_ident()}


@pytest.mark.parametrize(("device", "chosen"), [("cuda", []), ("cuda:1", [1])])
def test_for_a_gpu_every_tensor_is_pinned_beside_that_gpu(
    monkeypatch, device: str, chosen: list[int]
) -> None:
    found: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: found.append(device.index))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)  # without a GPU none is pinned
    values = torch.zeros(2, 1)
    batch = TrainingBatch(values, values, values, values, values, None, values, values, ["a", "b"])
    (locked,) = pinned([batch], torch.device(device))
    assert found == chosen
    tensors = [value for value in vars(locked).values() if value is not None and value is not locked.ids]
    assert len(tensors) == 7
    assert all(bool((value == 1).all()) for value in tensors)


def test_a_training_tells_of_a_damaged_shard_as_if_it_had_read_it_itself(tmp_path) -> None:
    store = write_tiny_store(tmp_path / "features")
    step = TrainStep(
        features=str(store),
        model=ModelOptions(num_layers=1, num_attention_heads=2, attention_head_dim=8, sample_size=8),
        max_train_steps=2,
        global_batch_size=4,
        micro_batch_size=4,
        uncond="learned",  # the encoded empty caption would be read before the training begins
    )
    for shard in store.glob("text-*.safetensors"):
        shard.write_bytes(b"\xff" * shard.stat().st_size)
    with pytest.raises(UserError, match=r"text-.*safetensors is damaged"):
        run_training(step, tmp_path / "run", Silent())
    assert reading() == []
