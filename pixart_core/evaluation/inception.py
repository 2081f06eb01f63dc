"""The Inception-v3 that FID is defined on: the TensorFlow port of 2015, pool3 features.

It differs from the ImageNet network of the same name in weights, in average pools that leave the padding
out, and in the last block's maximum pool where all others average (Szegedy et al. 2015; Heusel et al. 2017).
"""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pixart_core.errors import UserError
from pixart_core.evaluation.published_weights import PublishedFile, cached_file, find_published

FEATURES = 2048
SIDE = 299  # pixels
SHA256_PREFIX = "6726825d"  # of the published weights; pytorch-fid and torch-fidelity use the same
FILE = f"pt_inception-2015-12-05-{SHA256_PREFIX}.pth"
PUBLISHED = PublishedFile(
    names=(FILE, f"weights-inception-2015-12-05-{SHA256_PREFIX}.pth"),  # of pytorch-fid, of torch-fidelity
    url=f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}",
    sha256=SHA256_PREFIX,
    size="91 MB",
)
DOWNLOAD = f"{PUBLISHED.url} ({PUBLISHED.size})"
_CLASSES = 1008

Kernel = int | tuple[int, int]
Stage = tuple[str, int, Kernel, int]  # name, output channels, kernel, stride
Branch = tuple[Any, ...]  # stages one after another; the last may be a tuple of stages side by side
Pool = Literal["average", "maximum", "halving"]


class Convolution(nn.Module):
    """Convolution without bias, batch norm, ReLU; padded so that only strides and 3x3 stems shrink."""

    def __init__(self, channels: int, out: int, kernel: Kernel, stride: int = 1, padding: Any = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """One inception block: branches side by side and a pool, concatenated in this order.

    Its modules carry the names of the published state dict.
    """

    def __init__(self, channels: int, branches: tuple[Branch, ...], pool: Pool, projection: int = 0) -> None:
        super().__init__()
        self.branches, self.pool = branches, pool
        for branch in branches:
            width = channels
            for stage in branch:
                for name, out, kernel, stride in stage if isinstance(stage[0], tuple) else (stage,):
                    padding = _same(kernel) if stride == 1 else 0
                    self.add_module(name, Convolution(width, out, kernel, stride, padding))
                width = stage[1] if isinstance(stage[0], str) else 0
        if projection:
            self.branch_pool = Convolution(channels, projection, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        outputs = []
        for branch in self.branches:
            value = x
            for stage in branch:
                if isinstance(stage[0], tuple):
                    value = torch.cat([self.get_submodule(name)(value) for name, *_ in stage], 1)
                else:
                    value = self.get_submodule(stage[0])(value)
            outputs.append(value)
        return torch.cat([*outputs, self._pooled(x)], 1)

    def _pooled(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        if self.pool == "halving":
            return F.max_pool2d(x, 3, 2)
        if self.pool == "maximum":
            return self.branch_pool(F.max_pool2d(x, 3, 1, 1))
        return self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))


def _same(kernel: Kernel) -> Any:
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)


def _block_35(channels: int, projection: int) -> Mixed:
    branches: tuple[Branch, ...] = (
        (("branch1x1", 64, 1, 1),),
        (("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1)),
        (("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 1)),
    )
    return Mixed(channels, branches, "average", projection)


def _to_17() -> Mixed:
    branches: tuple[Branch, ...] = (
        (("branch3x3", 384, 3, 2),),
        (("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 2)),
    )
    return Mixed(288, branches, "halving")


def _block_17(width: int) -> Mixed:
    row, column = (1, 7), (7, 1)
    branches: tuple[Branch, ...] = (
        (("branch1x1", 192, 1, 1),),
        (("branch7x7_1", width, 1, 1), ("branch7x7_2", width, row, 1), ("branch7x7_3", 192, column, 1)),
        (
            ("branch7x7dbl_1", width, 1, 1),
            ("branch7x7dbl_2", width, column, 1),
            ("branch7x7dbl_3", width, row, 1),
            ("branch7x7dbl_4", width, column, 1),
            ("branch7x7dbl_5", 192, row, 1),
        ),
    )
    return Mixed(768, branches, "average", 192)


def _to_8() -> Mixed:
    branches: tuple[Branch, ...] = (
        (("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2)),
        (
            ("branch7x7x3_1", 192, 1, 1),
            ("branch7x7x3_2", 192, (1, 7), 1),
            ("branch7x7x3_3", 192, (7, 1), 1),
            ("branch7x7x3_4", 192, 3, 2),
        ),
    )
    return Mixed(768, branches, "halving")


def _block_8(channels: int, pool: Pool) -> Mixed:
    def both(name: str) -> tuple[Stage, Stage]:
        return (f"{name}a", 384, (1, 3), 1), (f"{name}b", 384, (3, 1), 1)

    branches: tuple[Branch, ...] = (
        (("branch1x1", 320, 1, 1),),
        (("branch3x3_1", 384, 1, 1), both("branch3x3_2")),
        (("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 1), both("branch3x3dbl_3")),
    )
    return Mixed(channels, branches, pool, 192)


class FidInception(nn.Module):
    """Inception-v3 as of 2015; `forward` gives the features of pool3.

    The layer `fc` is there only because the published file holds it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b = _block_35(192, 32)
        self.Mixed_5c = _block_35(256, 64)
        self.Mixed_5d = _block_35(288, 64)
        self.Mixed_6a = _to_17()
        self.Mixed_6b = _block_17(128)
        self.Mixed_6c = _block_17(160)
        self.Mixed_6d = _block_17(160)
        self.Mixed_6e = _block_17(192)
        self.Mixed_7a = _to_8()
        self.Mixed_7b = _block_8(1280, "average")
        self.Mixed_7c = _block_8(FEATURES, "maximum")
        self.fc = nn.Linear(FEATURES, _CLASSES)

    def forward(self, x: Float[Tensor, "b 3 299 299"]) -> Float[Tensor, "b 2048"]:
        """Args: x: about -1..1, scaled and resized as a protocol of `preparation` says."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)  # (b, 192, 35, 35)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (b, 288, 35, 35)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))  # (b, 768, 17, 17)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (b, 2048, 8, 8)
        return x.mean((2, 3))


def find_inception(source: str | None) -> Path:
    """The file of the published weights, or of others.

    Args:
        source: as `find_published`; None takes what pytorch-fid or torch-fidelity have downloaded here.

    Raises:
        UserError: it is not here, and how to have it.
    """
    if source is None:
        path = cached_file(PUBLISHED)
        if path is None:
            raise UserError(
                f"bench fid needs weights: download {DOWNLOAD} and give inception=PATH, or give that address "
                f"or a hub id as inception= to have them fetched"
            )
        return path
    path = find_published(source, PUBLISHED, "inception")
    if path is None and Path(source).expanduser().is_dir():
        raise UserError(f"inception: {source} holds no {' or '.join(PUBLISHED.names)}")
    # What is no file is refused where it is read.
    return path or Path(source).expanduser()


def load_inception(path: Path) -> tuple[FidInception, str]:
    """Read weights from `path`, running no pickle.

    Returns:
        the model in evaluation mode, and the first 8 hex digits of the file's SHA-256: `SHA256_PREFIX` for
        the published weights.

    Raises:
        UserError: no such file, one that is not what its name says, or whose tensors are others.
    """
    if not path.is_file():
        raise UserError(f"inception: no such file {path}; download {DOWNLOAD} and give its path")
    sha256 = _sha256(path)
    named = SHA256_PREFIX in path.name
    if named and not sha256.startswith(SHA256_PREFIX):
        raise UserError(
            f"inception: the SHA-256 of {path} begins with {sha256[:8]}, not {SHA256_PREFIX} as its name "
            f"says: damaged or cut off; download it again: {DOWNLOAD}"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"inception: {path} cannot be read as PyTorch weights ({reason})") from error
    with torch.device("meta"):  # drawing weights that are thrown away would take seconds
        model = FidInception()
    _check_tensors(state, model, path)
    counters = {name: torch.zeros((), dtype=torch.long) for name in model.state_dict() if not _counts(name)}
    model.load_state_dict(counters | dict(state), assign=True)
    return model.float().eval().requires_grad_(False), sha256[:8]


def _check_tensors(state: Any, model: FidInception, path: Path) -> None:
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"inception: {path} holds no state dict; download {DOWNLOAD}")
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items() if _counts(name)}
    found = {name: tuple(value.shape) for name, value in state.items() if _counts(name)}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        raise UserError(
            f"inception: {path} is another network: {len(wrong)} tensors differ, e.g. {wrong[0]}; FID is "
            f"defined on {DOWNLOAD}"
        )


def _counts(name: str) -> bool:
    """Whether a tensor decides the features: the counter of a batch norm does not."""
    return not name.endswith("num_batches_tracked")


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"inception: {path} cannot be read ({error.strerror})") from error
