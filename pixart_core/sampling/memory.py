"""How much memory each part of sampling took at most: of this process, and of its GPU."""

import contextlib
import dataclasses
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from pixart_core.errors import PixartError
from pixart_core.training.out_of_memory import is_out_of_memory

SAMPLE_SECONDS = 0.02
_STATUS = Path("/proc/self/status")
_FIELDS = re.compile(r"^(VmRSS|RssFile):\s+(\d+) kB", re.MULTILINE)


@dataclasses.dataclass
class Peak:
    """Bytes, at most; None where the system does not tell (not Linux; no GPU).

    Attributes:
        resident: of the process, all in all, sampled every `SAMPLE_SECONDS`.
        unmapped: of that, what is not merely mapped from files: the kernel can take those pages back.
        cuda: that tensors took on the GPU.
    """

    resident: int | None = None
    unmapped: int | None = None
    cuda: int | None = None

    def raise_to(self, other: "Peak") -> None:
        """The larger of both, one by one."""
        for field in dataclasses.fields(self):
            found = [v for v in (getattr(self, field.name), getattr(other, field.name)) if v is not None]
            setattr(self, field.name, max(found, default=None))


class MemoryWatch:
    """Measures in phases; one phase may come many times, its largest counts.

    Attributes:
        peaks: of each phase so far, in the order of their first beginning.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self.peaks: dict[str, Peak] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what happens within."""
        peak = self.peaks.setdefault(name, Peak())
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
        ended = threading.Event()
        sampler = threading.Thread(target=_sample, args=(peak, ended), daemon=True)
        peak.raise_to(_now())
        sampler.start()
        try:
            yield
        finally:
            ended.set()
            sampler.join()
            peak.raise_to(_now())
            if self._cuda is not None:
                peak.raise_to(Peak(cuda=torch.cuda.max_memory_allocated(self._cuda)))

    def report(self) -> dict[str, dict[str, int]]:
        """Bytes of each phase, and of all (`peak`); what the system does not tell is left out."""
        whole = Peak()
        for peak in self.peaks.values():
            whole.raise_to(peak)
        return {name: _told(peak) for name, peak in {**self.peaks, "peak": whole}.items()}

    def words(self) -> str | None:
        """One line for a person; None where nothing could be measured."""
        parts = [
            f"{name.replace('_', ' ')} {_gigabytes(peak)}" for name, peak in self.peaks.items() if _told(peak)
        ]
        return f"memory, at most: {', '.join(parts)}" if parts else None


@contextlib.contextmanager
def enough_memory(what: str, remedy: str) -> Iterator[None]:
    """Say of memory that could not be had what it was for and what helps.

    Raises:
        PixartError: it could not be had.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise PixartError(f"out of memory {what}: {remedy}") from error


def _sample(peak: Peak, ended: threading.Event) -> None:
    while not ended.wait(SAMPLE_SECONDS):
        peak.raise_to(_now())


def _now() -> Peak:
    try:
        found = {name: int(kilobytes) * 1024 for name, kilobytes in _FIELDS.findall(_STATUS.read_text())}
    except OSError:
        return Peak()
    if found.keys() != {"VmRSS", "RssFile"}:
        return Peak()
    return Peak(resident=found["VmRSS"], unmapped=found["VmRSS"] - found["RssFile"])


def _told(peak: Peak) -> dict[str, int]:
    return {name: value for name, value in dataclasses.asdict(peak).items() if value is not None}


def _gigabytes(peak: Peak) -> str:
    parts = []
    if peak.resident is not None and peak.unmapped is not None:
        parts.append(f"{peak.resident / 1e9:.2f} GB ({peak.unmapped / 1e9:.2f} without mapped files)")
    if peak.cuda is not None:
        parts.append(f"{peak.cuda / 1e9:.2f} GB of the GPU")
    return " and ".join(parts)
