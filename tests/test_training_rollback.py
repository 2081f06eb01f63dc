"""Going back to the last state: what is let go of, and who is heard meanwhile."""

import os
import signal
import weakref
from typing import Any

import pytest
import torch
from test_training_failures import make_step, poison, store, weights

from pixart_core.errors import UnfinishedError
from pixart_core.progress import Silent
from pixart_core.recipe.failing import NonFiniteOptions
from pixart_core.training import loop, recover
from pixart_core.training.loop import run_training

__all__ = ["store"]  # a fixture


def test_an_end_that_is_asked_for_in_a_step_that_is_rolled_back_is_heard(
    store, tmp_path, monkeypatch
) -> None:
    run_training(make_step(store), tmp_path / "whole", Silent())
    step = make_step(store, non_finite=NonFiniteOptions(action="rollback"))
    with monkeypatch.context() as patch:
        poison(patch, 4, once=True)
        told = recover._in_words
        patch.setattr(recover, "_in_words", lambda row: os.kill(os.getpid(), signal.SIGTERM) or told(row))
        with pytest.raises(UnfinishedError, match=r"step 5 .* ended as asked"):
            run_training(step, tmp_path / "run", Silent())
    run_training(step, tmp_path / "run", Silent())
    whole, run = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], run[name]) for name in whole)


def test_a_rollback_lets_go_of_the_model_before_it_opens_another(store, tmp_path, monkeypatch) -> None:
    poison(monkeypatch, 4, once=True)
    opened: list[weakref.ref[torch.nn.Module]] = []
    alive: list[bool] = []

    def open_run(*args: Any, **options: Any) -> Any:
        alive.extend(model() is not None for model in opened)
        run = real(*args, **options)
        opened.append(weakref.ref(run.model))
        return run

    real = loop.open_run
    monkeypatch.setattr(loop, "open_run", open_run)
    step = make_step(store, non_finite=NonFiniteOptions(action="rollback"))
    run_training(step, tmp_path / "run", Silent())
    assert alive == [False]
