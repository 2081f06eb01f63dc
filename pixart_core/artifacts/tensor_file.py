"""Write a safetensors file one tensor at a time, cast on the way."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pixart_core.artifacts.publish import staged_file
from pixart_core.errors import UserError

# Names of the types in a safetensors header.
TYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> list[str]:
    """Write `tensors` as `dtype`; the file equals that of safetensors' `save_file`, byte for byte.

    `save_file` needs all tensors in their final type at once. Here one is cast, written and let go, so that
    weights that lie in a mapped file need no memory of their own.

    Returns:
        Names of the tensors with NaN or infinite values, which are written as they are.

    Raises:
        PixartError: the disk is full or the folder cannot be written; `path` is untouched.
        UserError: a weight is too large for `dtype`.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(tensors):
        shape = tensors[name].shape
        end = offset + shape.numel() * dtype.itemsize
        header[name] = {"dtype": TYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    not_finite: list[str] = []
    with staged_file(path) as partial, partial.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in sorted(tensors):
            tensor = cast(name, tensors[name], dtype)
            file.write(raw_bytes(tensor))
            if not is_finite(tensor):
                not_finite.append(name)
    return not_finite


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    return bool(torch.isfinite(tensor).all())


def check_plain(name: str, tensor: Tensor) -> None:
    """Weights are real numbers one after another.

    Raises:
        UserError: `tensor` is something else.
    """
    what = None
    if tensor.is_quantized:
        what = "quantised"
    elif tensor.layout != torch.strided or tensor.is_nested:
        what = f"a {str(tensor.layout).removeprefix('torch.')} tensor"
    elif tensor.is_meta:
        what = "without values (on the meta device)"
    elif not tensor.is_floating_point():
        what = f"stored as {str(tensor.dtype).removeprefix('torch.')}"
    if what is not None:
        raise UserError(f"{name} is {what}, which are no weights; save it as a plain tensor of floats first")


def raw_bytes(tensor: Tensor) -> memoryview:
    """The elements as they lie in memory (little-endian on every machine that torch runs on)."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` on the CPU as `dtype`; the same tensor if it is that already.

    Raises:
        UserError: a finite value becomes infinite, or `tensor` is not plain.
    """
    check_plain(name, tensor)
    tensor = tensor.detach().to("cpu")
    if tensor.dtype == dtype:
        return tensor
    result = tensor.to(dtype)
    if not is_finite(result) and not torch.equal(torch.isfinite(result), torch.isfinite(tensor)):
        largest = tensor[torch.isfinite(tensor)].abs().max().item()
        short = str(dtype).removeprefix("torch.")
        raise UserError(
            f"{name} has a value of {largest:.4g}, beyond the range of {short}; choose bf16 or fp32"
        )
    return result
