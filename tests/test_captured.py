"""Laws of recorded steps, without a GPU: a recording that is not right is not used."""

import dataclasses
import inspect
import warnings

import pytest
import torch
from random_models import random_model

from pixart_core.sampling.captured import CapturedTransformer, launch_bound
from pixart_core.sampling.prepared import PreparedTransformer

CPU = torch.device("cpu")


def caption(length: int) -> list[torch.Tensor]:
    return [torch.randn(length, 20, generator=torch.Generator().manual_seed(length))]


def latents(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(5))


def test_steps_are_recorded_on_a_gpu_where_they_are_small() -> None:
    assert launch_bound(torch.device("cuda"), 2 * 256)
    assert not launch_bound(torch.device("cuda"), 2 * 4096)
    assert not launch_bound(CPU, 2 * 256)


@dataclasses.dataclass
class Recorder:
    """In the place of CUDA graphs: replays by calling again."""

    replayed: int = 0
    wrong: float = 0.0

    def __call__(self, function, device):
        assert device == CPU
        function()

        def replay() -> None:
            self.replayed += 1
            function()
            if self.wrong:
                inspect.getclosurevars(function).nonlocals["self"]._output += self.wrong

        return replay


def both(recorder, steps: int = 12) -> tuple[PreparedTransformer, CapturedTransformer]:
    timesteps = torch.linspace(999, 0, steps).long()
    prepared = PreparedTransformer(random_model(), timesteps, caption(1), caption(6))
    return prepared, CapturedTransformer(prepared, recorder)


@pytest.fixture(autouse=True)
def recording_is_possible(monkeypatch) -> None:
    monkeypatch.setattr(CapturedTransformer, "possible", True)


@torch.no_grad()
def test_recorded_steps_are_played_with_what_is_given_now() -> None:
    recorder = Recorder()
    prepared, captured = both(recorder)
    outputs = []
    for step in (0, 1, 2, 0):
        for guided, count in ((True, 2), (False, 1)):
            x = latents(count) * (step + 1)
            outputs.append((captured(x, step, guided=guided), prepared(x, step, guided=guided)))
    # Compared at the end: an output must outlive the next replay.
    assert all(torch.equal(ours, theirs) for ours, theirs in outputs)
    assert recorder.replayed == 2 + 6  # a check for each of the two shapes, then all the steps but the first


@torch.no_grad()
def test_a_few_steps_are_not_recorded() -> None:
    recorder = Recorder()
    for steps, first in ((4, 0), (12, 9)):
        prepared, captured = both(recorder, steps)
        for step in (first, first + 1):
            assert torch.equal(
                captured(latents(2), step, guided=True), prepared(latents(2), step, guided=True)
            )
    assert recorder.replayed == 0


def impossible(*_):
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def empty(function, _):
    function()
    return lambda: None


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        (Recorder(wrong=1e-4), "another output"),
        (Recorder(wrong=float("nan")), "another output"),
        (empty, "another output"),
        (impossible, "not permitted"),
    ],
)
@torch.no_grad()
def test_a_recording_that_is_wrong_or_impossible_is_not_used(recorder, reason) -> None:
    prepared, captured = both(recorder)
    with pytest.warns(UserWarning, match=reason):
        captured(latents(2), 0, guided=True)
    for step in (0, 1):
        expected = prepared(latents(2), step, guided=True)
        assert torch.equal(captured(latents(2), step, guided=True), expected)
    with warnings.catch_warnings():  # nor is it tried again in the next batch
        warnings.simplefilter("error")
        both(recorder)[1](latents(2), 0, guided=True)
