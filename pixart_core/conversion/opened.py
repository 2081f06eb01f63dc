"""Open a source, whatever it is: format and raw weights, told from its keys and not from its name."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pixart_core.artifacts.card import Card, read_card
from pixart_core.artifacts.checkpoint import TRANSFORMER, ModelFacts, facts_of, read_checkpoint_card
from pixart_core.artifacts.uncond import read_uncond
from pixart_core.conversion.official import Y_EMBEDDING, original_kind
from pixart_core.conversion.weight_files import WeightFile, read_weight_file
from pixart_core.errors import UserError
from pixart_core.models.files import CONFIG, WEIGHTS, WEIGHTS_INDEX

Format = Literal["official PixArt", "original DiT", "official PixArt ControlNet", "diffusers"]
Container = Literal["file", "transformer folder", "pipeline", "checkpoint"]
OFFICIAL_CARD = "official"
# Our own entry in an official container: the config that shapes do not tell. Others ignore it.
OWN_ENTRY = "pixart"
EXPECTED = (
    "expected an official PixArt .pth, a DiT .pt, a .safetensors file, a diffusers transformer or pipeline "
    "folder, or a checkpoint of `pixart train` or `pixart convert`"
)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A source before its weights are understood.

    Attributes:
        path: file or folder that the weights came from.
        format: whose names the weights have.
        container: what the weights lie in.
        weights: as named in the file.
        config: diffusers' config.json, or our entry in an official container; None for a bare file.
        has_ema, used: whether the file has averaged weights; which were taken ("ema" or "model").
        y_embedding: learned unconditional caption stored beside diffusers-named weights.
    """

    path: Path
    format: Format
    container: Container
    weights: dict[str, Tensor]
    config: dict[str, Any] | None
    facts: ModelFacts
    has_ema: bool = False
    used: str = "model"
    y_embedding: Tensor | None = None


def open_source(source: str | Path, which: str = "ema") -> Opened:
    """Find out what `source` (path or hub id) is and read its weights, memory-mapped where possible.

    Raises:
        UserError: not there, damaged, unsafe, or nothing that holds a PixArt or DiT.
    """
    path = Path(source)
    if not path.exists():
        path = _downloaded(str(source))
    if path.is_file():
        if path.suffix == ".safetensors" and (path.parent / CONFIG).exists():
            return _open_transformer(path.parent, "transformer folder", ModelFacts())
        return _open_file(path, which)
    card = read_card(path)
    if (card and card["kind"] == "checkpoint") or (path / "checkpoints").is_dir():
        facts = facts_of(read_checkpoint_card(path), path)
        opened = _open_transformer(path / TRANSFORMER, "checkpoint", facts)
        return dataclasses.replace(opened, path=path, y_embedding=read_uncond(path))
    if (path / "model_index.json").exists():
        return _open_pipeline(path)
    for folder in (path, path / TRANSFORMER):
        if (folder / CONFIG).exists():
            return _open_transformer(folder, "transformer folder", ModelFacts())
    files = [file for suffix in (".pth", ".pt", ".safetensors") for file in sorted(path.glob(f"*{suffix}"))]
    files = [file for file in files if file.name != "uncond.safetensors"]
    if len(files) == 1:
        return _open_file(files[0], which)
    several = f" ({', '.join(file.name for file in files[:4])}: name one)" if files else ""
    raise UserError(f"{path} holds no transformer{several}; {EXPECTED}")


def _downloaded(source: str) -> Path:
    """The snapshot of a hub id; a missing local path is reported as such."""
    looks_like_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not Path(source).parent.exists()
    if not looks_like_hub_id or source.endswith((".pt", ".pth", ".safetensors")):
        raise UserError(f"{source}: no such file or folder")
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "transformer/*", "scheduler/*", "*.safetensors"]
        return Path(snapshot_download(source, allow_patterns=wanted, ignore_patterns=["*.fp16.*"]))
    except Exception as error:  # the hub raises many kinds; all mean that the id did not work
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UserError(f"{source} is no local path and could not be had from the hub ({reason})") from error


def _open_file(path: Path, which: str) -> Opened:
    file = read_weight_file(path)
    weights = file.weights(which)
    used = "ema" if weights is file.ema else "model"
    own = file.extra.get(OWN_ENTRY)
    own = own if isinstance(own, dict) else {}
    kind = original_kind(weights)
    if kind == "pixart":
        facts = ModelFacts.from_details(own, path) if own else _official_facts(weights)
    else:
        facts = ModelFacts.from_details(own, path)
    return Opened(
        path=path,
        format=_format(path, weights, file),
        container="file",
        weights=weights,
        config=own.get("config"),
        facts=facts,
        has_ema=file.ema is not None,
        used=used,
    )


def _official_facts(weights: dict[str, Tensor]) -> ModelFacts:
    """Those of the released weights; a file without the learned caption can only be given the empty one."""
    learned = weights.get(Y_EMBEDDING)
    if learned is None or learned.ndim != 2:
        return ModelFacts(uncond="empty")
    return ModelFacts(uncond="learned", max_tokens=len(learned))


def _format(path: Path, weights: dict[str, Tensor], file: WeightFile) -> Format:
    if any(name.startswith("controlnet.") for name in weights):
        return "official PixArt ControlNet"
    kind = original_kind(weights)
    if kind is not None:
        return "official PixArt" if kind == "pixart" else "original DiT"
    if "pos_embed.proj.weight" in weights:
        return "diffusers"
    found = ", ".join(list(weights)[:3] or list(file.container)[:3])
    raise UserError(f"{path} holds weights of another model ({found}, ...); {EXPECTED}")


def _open_pipeline(path: Path) -> Opened:
    index = _json(path / "model_index.json")
    name = index.get("_class_name")
    if name not in ("PixArtAlphaPipeline", "DiTPipeline"):
        raise UserError(f"{path} is a {name}; expected a PixArtAlphaPipeline or DiTPipeline")
    card = read_card(path)
    facts = facts_of(Card.read(path, "pipeline"), path) if card else ModelFacts()
    scheduler = path / "scheduler" / "scheduler_config.json"
    changes: dict[str, Any] = {}
    if scheduler.exists():
        changes["prediction_type"] = _json(scheduler).get("prediction_type", "epsilon")
    for part in ("vae", "text_encoder"):  # a pipeline brings its own, wherever it was moved to
        if (path / part).is_dir():
            changes[part] = str(path)
    opened = _open_transformer(path / TRANSFORMER, "pipeline", dataclasses.replace(facts, **changes))
    return dataclasses.replace(opened, path=path, y_embedding=read_uncond(path))


def _open_transformer(folder: Path, container: Container, facts: ModelFacts) -> Opened:
    config = _json(folder / CONFIG)
    return Opened(folder, "diffusers", container, _folder_weights(folder), config, facts)


def _folder_weights(folder: Path) -> dict[str, Tensor]:
    """All shards of a transformer folder; safetensors before pickles, full precision before fp16."""
    for name in (WEIGHTS_INDEX, "diffusion_pytorch_model.bin.index.json"):
        if (folder / name).exists():
            try:
                shards = sorted(set(_json(folder / name)["weight_map"].values()))
            except (KeyError, AttributeError) as error:
                raise UserError(f"{folder / name} is no index of shards") from error
            merged: dict[str, Tensor] = {}
            for shard in shards:
                merged |= read_weight_file(folder / Path(shard).name).weights()
            return merged
    names = (WEIGHTS, WEIGHTS.replace(".safetensors", ".fp16.safetensors"), "diffusion_pytorch_model.bin")
    for name in names:
        if (folder / name).exists():
            return read_weight_file(folder / name).weights()
    raise UserError(f"{folder} holds no {WEIGHTS}")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {EXPECTED}") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value
