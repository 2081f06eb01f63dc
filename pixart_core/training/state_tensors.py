"""Files of whole tensors, written one tensor at a time by the first process, read by all, each its part."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pixart_core.artifacts.publish import staged_file
from pixart_core.artifacts.tensor_file import raw_bytes
from pixart_core.errors import PixartError
from pixart_core.training.shards import as_sharded, part_of, whole

# Names of the types in a safetensors header.
TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip

Layouts = Mapping[str, Tensor]
"""Tensors whose values do not matter: the whole shape, and how it is spread over the processes."""


def write_whole(path: Path | None, tensors: Mapping[str, Tensor], layouts: Layouts) -> None:
    """Write a safetensors file; sharded tensors are gathered one by one, so that one at most is in memory.

    Args:
        path: None on the processes that only take part in gathering.
        tensors: this process's parts.

    Raises:
        PixartError: the disk is full. All tensors were gathered before, so that no process waits.
    """
    waiting = iter(sorted(tensors))
    if path is not None:
        try:
            with staged_file(path) as partial, partial.open("wb") as file:
                file.write(_header(tensors, layouts))
                for name in waiting:
                    tensor = whole(as_sharded(tensors[name], layouts[name]))
                    file.write(raw_bytes(tensor.detach().cpu()))
        except PixartError:
            write_whole(None, {name: tensors[name] for name in waiting}, layouts)
            raise
    for name in waiting:
        whole(as_sharded(tensors[name], layouts[name]))


def read_parts(path: Path, layouts: Layouts) -> Iterator[tuple[str, Tensor]]:
    """This process's part of each tensor of a file that `write_whole` wrote; nobody is asked."""
    with safe_open(path, "pt") as file:
        for name, layout in layouts.items():
            yield name, part_of(file.get_tensor(name), layout)


def tensor_shapes(path: Path) -> dict[str, torch.Size]:
    """Names and shapes in a file.

    Raises:
        SafetensorError, OSError: it cannot be read.
    """
    with safe_open(path, "pt") as file:
        return {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def check_layouts(path: Path, layouts: Layouts) -> None:
    """Compare names and shapes of a file with those that are wanted.

    Raises:
        ValueError: they are others.
        SafetensorError, OSError: the file cannot be read.
    """
    found = tensor_shapes(path)
    wanted = {name: layout.shape for name, layout in layouts.items()}
    odd = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if odd:
        raise ValueError(f"{path.name} is of another model: {', '.join(odd[:3])}")


def _header(tensors: Mapping[str, Tensor], layouts: Layouts) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(tensors):
        shape, dtype = layouts[name].shape, tensors[name].dtype
        end = offset + shape.numel() * dtype.itemsize
        header[name] = {"dtype": TYPES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head
