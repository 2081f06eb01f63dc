"""Open a source, whatever it is: format and raw weights, told from its keys and not from its name."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pixart_core.artifacts.card import Card, read_card
from pixart_core.artifacts.checkpoint import TRANSFORMER, ModelFacts, facts_of, read_checkpoint_card
from pixart_core.artifacts.json_file import read_json
from pixart_core.artifacts.uncond import UNCOND, read_uncond
from pixart_core.conversion.official import Y_EMBEDDING
from pixart_core.conversion.recognise import (
    CONTROLNET_BASE,
    NO_BASE,
    Format,
    base_model,
    copied_blocks,
    recognise,
)
from pixart_core.conversion.transformer_folder import find_weights, read_transformer_config
from pixart_core.conversion.weight_files import WeightFile, read_weight_file
from pixart_core.errors import UserError
from pixart_core.models.files import CONFIG
from pixart_core.recipe.records import CHAIN

Container = Literal["file", "transformer folder", "pipeline", "checkpoint"]
OFFICIAL_CARD = "official"
PIPELINE_INDEX = "model_index.json"
# Our own entry in an official container: the config that shapes do not tell. Others ignore it.
OWN_ENTRY = "pixart"
EXPECTED = (
    "expected an official PixArt .pth, a DiT .pt, a .safetensors file, a diffusers transformer or pipeline "
    "folder, or a checkpoint of `pixart train` or `pixart convert`"
)
# The model of a repository, not its encoders: those are fetched where a pipeline is written.
_HUB_FILES = ["*.json", f"{TRANSFORMER}/*", UNCOND, "diffusion_pytorch_model*"]
_HALF_FILES = ["*.fp16.*", "*.fp16-*"]


@dataclasses.dataclass(frozen=True)
class Opened:
    """A source before its weights are understood.

    Attributes:
        path: file or folder that the weights came from.
        format: whose names the weights have.
        container: what the weights lie in.
        weights: as named in the file.
        config: diffusers' config.json, or our entry in an official container; None for a bare file.
        files: those that the weights were read from.
        has_ema, used: whether the file has averaged weights; which were taken ("ema", "model", "base").
        y_embedding: learned unconditional caption stored beside diffusers-named weights.
        extra: other entries of a container (epoch, step, args, ...).
        facts_stored: whether the source says `facts`; else they are those of the released weights.
    """

    path: Path
    format: Format
    container: Container
    weights: dict[str, Tensor]
    config: dict[str, Any] | None
    facts: ModelFacts
    files: tuple[Path, ...]
    has_ema: bool = False
    used: str = "model"
    y_embedding: Tensor | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    facts_stored: bool = False

    @property
    def layout(self) -> str:
        """Format and container in words."""
        own = self.container == "checkpoint"
        return "pixart checkpoint" if own else f"{self.format} ({self.container})"


def open_source(source: str | Path, which: str = "ema") -> Opened:
    """Find out what `source` (path or hub id) is and read its weights, memory-mapped where possible.

    Args:
        which: "ema", "model" or "base" (of a ControlNet), for files that hold several.

    Raises:
        UserError: not there, damaged, unsafe, holds no weights, or not those that `which` asks for.
    """
    path = Path(source)
    if path.exists():
        opened = _open_path(_whole(path), which)
    else:
        opened = _open_path(_downloaded(str(source)), which)
        opened = dataclasses.replace(opened, facts=_with_hub_encoders(opened, str(source)))
    if which != "ema" and which != opened.used:
        what = "averaged weights only" if which == "model" else "no ControlNet's base model"
        raise UserError(f"{source} holds {what}; leave weights={which} out")
    return opened


def _open_path(path: Path, which: str) -> Opened:
    if path.is_file():
        return _open_file(path, which)
    card = read_card(path)
    if (card and card["kind"] == "checkpoint") or (path / "checkpoints").is_dir():
        facts = facts_of(read_checkpoint_card(path), path)
        opened = _open_transformer(path / TRANSFORMER, "checkpoint", facts)
        # Training publishes the averaged weights alone.
        used = "ema" if card and card["options"].get("command") == "train" else "model"
        y_embedding = read_uncond(path)
        return dataclasses.replace(opened, path=path, used=used, y_embedding=y_embedding, facts_stored=True)
    if (path / PIPELINE_INDEX).exists():
        return _open_pipeline(path)
    if card and card["kind"] != OFFICIAL_CARD:
        raise UserError(f"{path} holds {card['kind']} made by pixart, not a model; {EXPECTED}")
    for folder in (path, path / TRANSFORMER):
        if (folder / CONFIG).exists():
            return _open_transformer(folder, "transformer folder", ModelFacts())
    files = [file for suffix in (".pth", ".pt", ".safetensors") for file in sorted(path.glob(f"*{suffix}"))]
    files = [file for file in files if file.name != UNCOND]
    if len(files) == 1:
        return _open_file(files[0], which)
    if (path / CHAIN).is_dir():
        raise UserError(
            f"{path} is the folder of a `pixart run`; name one of its steps, e.g. {path}/pipeline"
        )
    several = f" ({', '.join(file.name for file in files[:4])}: name one)" if files else ""
    raise UserError(f"{path} holds no transformer{several}; {EXPECTED}")


def _whole(path: Path) -> Path:
    """The checkpoint or pipeline that `path` is the `transformer/` of: it knows more of its weights."""
    if path.is_file():
        return _whole(path.parent) if _is_of_its_folder(path) else path
    parent = path.resolve().parent
    card = read_card(parent)
    belongs = (card and card["kind"] == "checkpoint") or (parent / PIPELINE_INDEX).exists()
    return parent if path.resolve().name == TRANSFORMER and belongs else path


def _is_of_its_folder(path: Path) -> bool:
    """Whether a file is what opening its folder would read, alone or as a shard."""
    try:
        read_transformer_config(path.parent)
        return path in find_weights(path.parent)
    except UserError:
        return False


def _downloaded(source: str) -> Path:
    """The snapshot of a hub id; a missing local path is reported as such."""
    looks_like_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not Path(source).parent.exists()
    if not looks_like_hub_id or source.endswith((".pt", ".pth", ".safetensors")):
        raise UserError(f"{source}: no such file or folder")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(source, allow_patterns=_HUB_FILES, ignore_patterns=_HALF_FILES))
        if not _has_weights(folder):  # there may be half precision alone
            folder = Path(snapshot_download(source, allow_patterns=_HUB_FILES))
        return folder
    except Exception as error:  # the hub raises many kinds; all mean that the id did not work
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UserError(f"{source} is no local path and could not be had from the hub ({reason})") from error


def _has_weights(folder: Path) -> bool:
    """Whether a transformer's weights are there; those of encoders may be, from an earlier download."""
    files = [*folder.glob("*"), *(folder / TRANSFORMER).glob("*")]
    return any(file.suffix in (".safetensors", ".bin") and file.name != UNCOND for file in files)


def _with_hub_encoders(opened: Opened, source: str) -> ModelFacts:
    """The encoders of a pipeline on the hub are there, not in the snapshot, which lacks their weights."""
    inside = [part for part in ("vae", "text_encoder") if getattr(opened.facts, part) == str(opened.path)]
    changes: dict[str, Any] = dict.fromkeys(inside, source)
    return dataclasses.replace(opened.facts, **changes)


def _open_file(path: Path, which: str) -> Opened:
    file = read_weight_file(path)
    weights = file.weights(which)
    used = "ema" if weights is file.ema else "model"
    kind = recognise(weights)
    if kind == "official PixArt ControlNet" and which == "base":
        copies, weights = copied_blocks(weights), base_model(weights)
        if not weights:
            raise UserError(f"{path} is an official PixArt ControlNet: {copies} copied blocks {NO_BASE}")
        kind, used = recognise(weights), "base"
    own = file.extra.get(OWN_ENTRY)
    own = own if isinstance(own, dict) else {}
    return Opened(
        path=path,
        format=kind,
        container="file",
        weights=weights,
        config=own.get("config") or (_config_beside(path) if kind == "diffusers" else None),
        facts=ModelFacts.from_details(own, path) if own else _file_facts(kind, weights),
        facts_stored=bool(own),
        files=(path,),
        has_ema=file.ema is not None,
        used=used,
        extra=_progress(file),
    )


def _config_beside(path: Path) -> dict[str, Any] | None:
    """`config.json` next to a file of weights, if it is a transformer's."""
    config = path.parent / CONFIG
    return read_transformer_config(path.parent) if config.exists() else None


def _file_facts(kind: Format, weights: Mapping[str, Tensor]) -> ModelFacts:
    """Those of the released weights; a file without the learned caption can only be given the empty one."""
    prefix = CONTROLNET_BASE if kind == "official PixArt ControlNet" else ""
    learned = weights.get(prefix + Y_EMBEDDING)
    if learned is None or learned.ndim != 2 or not len(learned):
        return ModelFacts(uncond="empty")
    return ModelFacts(uncond="learned", max_tokens=len(learned))


def _progress(file: WeightFile) -> dict[str, Any]:
    """Numbers that say how far a training was: epoch, step, ..."""
    return {
        name: value
        for name, value in file.extra.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _open_pipeline(path: Path) -> Opened:
    index = read_json(path / PIPELINE_INDEX, EXPECTED)
    name = index.get("_class_name")
    if name not in ("PixArtAlphaPipeline", "DiTPipeline"):
        raise UserError(f"{path} is a {name}; expected a PixArtAlphaPipeline or DiTPipeline")
    card = Card.read(path, "pipeline") if read_card(path) else None
    facts = facts_of(card, path) if card else ModelFacts()
    scheduler = path / "scheduler" / "scheduler_config.json"
    changes: dict[str, Any] = {}
    if scheduler.exists():
        changes["prediction_type"] = read_json(scheduler, EXPECTED).get("prediction_type", "epsilon")
    for part in ("vae", "text_encoder"):  # a pipeline brings its own, wherever it was moved to
        if (path / part).is_dir():
            changes[part] = str(path)
    opened = _open_transformer(path / TRANSFORMER, "pipeline", dataclasses.replace(facts, **changes))
    return dataclasses.replace(opened, path=path, y_embedding=read_uncond(path), facts_stored=True)


def _open_transformer(folder: Path, container: Container, facts: ModelFacts) -> Opened:
    config = read_transformer_config(folder)
    files = find_weights(folder)
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= read_weight_file(file).weights()
    return Opened(folder, "diffusers", container, weights, config, facts, tuple(files))
