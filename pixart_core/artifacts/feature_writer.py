"""Writes the feature store that `features.py` describes, shard by shard, resuming where it was killed."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor

from pixart_core.artifacts.card import CARD, Card
from pixart_core.artifacts.features import FORMAT, INDEX, Bucket, read_index
from pixart_core.artifacts.publish import write_bytes, write_text
from pixart_core.artifacts.quantise import dequantise, quantise
from pixart_core.errors import PixartError, UserError

Storage = Literal["int8", "fp16", "fp32"]

# diffusers clamps logvar at -30, std at 3e-7: where std is nowhere above this, the VAE has no noise.
_NO_NOISE = 1.0e-6


@dataclasses.dataclass
class ImageRows:
    """What one image shard holds.

    Attributes:
        ids: manifest ids.
        mean, std: unscaled moments of the VAE.
        labels: class of stage 1, -1 for none.
        sizes: original (height, width) in pixels.
        captions: number of each image's caption in the store's text shards; 0 is the empty caption.
    """

    ids: Sequence[str]
    mean: Float[Tensor, "n c h w"]
    std: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    sizes: Int[Tensor, "n 2"]
    captions: Int[Tensor, " n"]


class FeatureWriter:
    """Publishes shards one by one; those that an earlier, killed run published are kept.

    Shards must be written in the same order by every run, so that the index is the same too.
    """

    def __init__(self, folder: Path, plan: str, storage: Storage = "int8") -> None:
        """Open `folder` for writing what `plan`, a fingerprint of inputs and options, stands for.

        Raises:
            UserError: `folder` holds features made from other inputs or options.
        """
        self.folder = folder
        self.storage = storage
        found, self.entries = read_index(folder)
        if found is not None and found != plan:
            raise UserError(
                f"{folder} holds features made from other data, encoders or options; "
                "delete it or choose another output"
            )
        if found is None and (folder / CARD).exists():
            raise UserError(f"{folder} holds something else; choose another output")
        for partial in folder.glob(".*.partial"):  # of a killed run
            partial.unlink()
        header = json.dumps({"format": FORMAT, "plan": plan}, sort_keys=True)
        # Rewritten, so that a line which a kill cut short is gone.
        write_text(folder / INDEX, "".join(f"{line}\n" for line in [header, *map(_line, self.entries)]))
        self._done = {entry["name"] for entry in self.entries if self._is_whole(entry)}

    def _is_whole(self, entry: Mapping[str, Any]) -> bool:
        path = self.folder / entry["name"]
        return path.is_file() and path.stat().st_size == entry["bytes"]

    def has(self, name: str) -> bool:
        """Whether the shard `name` is published already."""
        return name in self._done

    def write_text(self, name: str, tokens: Sequence[Float[Tensor, "l d"]]) -> None:
        """Publish the token states of captions, in order; text shards are numbered on from 0."""
        offsets = torch.tensor([0, *(len(states) for states in tokens)]).cumsum(0)
        columns, errors = self._pack({"token": torch.cat(list(tokens))})
        self._publish(
            {"kind": "text", "name": name, "count": len(tokens), "error": errors},
            columns | {"offset": offsets},
        )

    def write_images(self, name: str, bucket: Bucket, rows: ImageRows) -> None:
        """Publish the moments of images of `bucket` (pixels)."""
        moments = {"mean": rows.mean}
        if rows.std.max() > _NO_NOISE:
            moments["std"] = rows.std
        columns, errors = self._pack(moments)
        ids = [value.encode() for value in rows.ids]
        width = max(map(len, ids))
        columns |= {
            "id": torch.tensor([list(value.ljust(width, b"\0")) for value in ids], dtype=torch.uint8),
            "label": rows.labels.to(torch.int32),
            "size": rows.sizes.to(torch.int32),
            "caption": rows.captions.to(torch.int64),
        }
        entry = {"kind": "image", "name": name, "bucket": list(bucket), "count": len(ids), "error": errors}
        self._publish(entry, columns)

    def finish(self, card: Card) -> None:
        """Write the card, which makes the store complete."""
        card.write(self.folder)

    def errors(self) -> dict[str, float]:
        """Relative rms error of what is stored against what the encoders gave, for each kind of value."""
        names = sorted({name for entry in self.entries for name in entry["error"]})
        result = {}
        for name in names:
            pairs = [(e["error"][name], e["count"]) for e in self.entries if name in e["error"]]
            square = sum(error**2 * count for error, count in pairs) / sum(count for _, count in pairs)
            result[name] = float(f"{math.sqrt(square):.4g}")
        return result

    def _pack(self, values: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
        columns: dict[str, Tensor] = {}
        errors = {}
        for name, value in values.items():
            value = value.float().contiguous()
            if self.storage == "int8":
                # Latents in groups along the flattened sample, text along the channels of a token.
                codes, scale = quantise(value.flatten(1))
                columns |= {name: codes.view_as(value), f"{name}_scale": scale}
                stored = dequantise(codes, scale).view_as(value)
            else:
                columns[name] = value.half() if self.storage == "fp16" else value
                stored = columns[name].float()
            size = _norm(value)
            difference = _norm(stored - value)
            if not math.isfinite(size + difference):
                raise PixartError(
                    f"{name} is not finite in {self.storage}; a wider storage or dtype is needed"
                )
            errors[name] = float(f"{difference / size if size else 0.0:.4g}")
        return columns, errors

    def _publish(self, entry: dict[str, Any], columns: Mapping[str, Tensor]) -> None:
        data = save(dict(columns))
        entry |= {"bytes": len(data), "blake2b": hashlib.blake2b(data, digest_size=16).hexdigest()}
        write_bytes(self.folder / entry["name"], data)
        self._done.add(entry["name"])
        if any(known["name"] == entry["name"] for known in self.entries):
            return  # a shard that was gone is made again; its line is there
        self.entries.append(entry)
        try:
            with (self.folder / INDEX).open("a") as file:
                file.write(f"{_line(entry)}\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise PixartError(f"cannot write {self.folder / INDEX}: {error.strerror or error}") from error


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True)
