"""Steps on a GPU as one CUDA graph: in small batches the kernels are done before the next is launched."""

import warnings
from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from pixart_core.sampling.prepared import PreparedTransformer

# A recording of a function without arguments and results, to be played again.
Replay: TypeAlias = Callable[[], None]
Record: TypeAlias = Callable[[Callable[[], None], torch.device], Replay]

# With more of them in a batch a GPU is busy anyway.
_MOST_TOKENS = 4096
# Recording and checking take about as long as some steps.
_FEW_STEPS = 8


def record_cuda_graph(function: Callable[[], None], device: torch.device) -> Replay:
    """Record what `function` launches; it has run before, so that nothing is set up for the first time.

    Other threads (one that reads ahead for a training) go on meanwhile.
    """
    with torch.cuda.device(device):
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                function()
        finally:
            torch.cuda.set_stream(before)  # a recording that fails leaves its own one behind
    return graph.replay


class CapturedTransformer:
    """A `PreparedTransformer` that is recorded at its first step and played at the others.

    The recording is played once on the first step's input and compared: if it cannot be made, or gives
    another output, all steps run as without it, here and in later batches, and a warning says so.
    """

    possible = True

    def __init__(self, prepared: PreparedTransformer, record: Record = record_cuda_graph) -> None:
        self._prepared = prepared
        self._record = record
        self._recordings: dict[tuple[torch.Size, bool], _Recording | None] = {}

    def __call__(
        self, latents: Float[Tensor, "b c h w"], step: int, *, guided: bool
    ) -> Float[Tensor, "b out h w"]:
        """See `PreparedTransformer`."""
        key = (latents.shape, guided)
        if key in self._recordings:
            recording = self._recordings[key]
            if recording is not None:
                return recording.play(latents, step)
            return self._prepared(latents, step, guided=guided)
        output = self._prepared(latents, step, guided=guided)
        if CapturedTransformer.possible and self._prepared.steps - step >= _FEW_STEPS:
            self._recordings[key] = self._try(latents, step, guided, output)
        return output

    def _try(self, latents: Tensor, step: int, guided: bool, expected: Tensor) -> "_Recording | None":
        try:
            recording = _Recording(self._prepared, latents, step, guided, self._record)
            same = torch.equal(recording.play(latents, step), expected)
        except RuntimeError as error:  # of CUDA, whatever cannot be recorded
            _give_up(f"cannot be recorded ({str(error).splitlines()[0]})")
            return None
        if not same:
            _give_up("gives another output when played")
            return None
        return recording


def _give_up(reason: str) -> None:
    CapturedTransformer.possible = False
    warnings.warn(f"sampling goes on without a CUDA graph: a step {reason}", stacklevel=5)


class _Recording:
    """A step on buffers that stay in place."""

    def __init__(
        self, prepared: PreparedTransformer, latents: Tensor, step: int, guided: bool, record: Record
    ) -> None:
        self._prepared = prepared
        self._inputs = [part.clone() for part in (latents, *prepared.modulation(step))]
        self._output = torch.empty(0)

        def run() -> None:
            self._output = prepared.run(*self._inputs, guided=guided)

        self._replay = record(run, latents.device)
        self._output.fill_(torch.nan)  # what is played must write all of it

    def play(self, latents: Tensor, step: int) -> Tensor:
        for buffer, value in zip(self._inputs, (latents, *self._prepared.modulation(step)), strict=True):
            buffer.copy_(value)
        self._replay()
        return self._output.clone()


def launch_bound(device: torch.device, tokens: int) -> bool:
    """Whether a step on so many tokens in all is so small that a GPU waits for its launches."""
    return device.type == "cuda" and tokens <= _MOST_TOKENS
