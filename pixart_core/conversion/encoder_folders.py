"""Put a VAE, a text encoder and a tokenizer into a pipeline folder: local ones are copied file by file."""

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pixart_core.artifacts.json_file import read_json
from pixart_core.encoders.pretrained import loading, locate
from pixart_core.errors import UserError

CONFIG, EXPECTED = "config.json", "expected the folder of a VAE or text encoder"
WEIGHT_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "chat_template*",
)


def read_config(source: str, part: str) -> dict[str, Any] | None:
    """`config.json` of a local encoder ("vae" or "text_encoder"); None for a hub id.

    Raises:
        UserError: a local folder without one, or a damaged one.
    """
    folder = _local(source, part)
    return None if folder is None else read_json(folder / CONFIG, EXPECTED)


def text_width(config: dict[str, Any]) -> int | None:
    """Channels of a text encoder's tokens, from its config."""
    return config.get("d_model") or config.get("hidden_size")


def put_vae(source: str, folder: Path) -> dict[str, Any]:
    """Copy or download an `AutoencoderKL` into `folder`; returns its config.

    Raises:
        UserError: not an AutoencoderKL, or not to be had.
    """
    from pixart_core.encoders.vae import load_vae

    local, config = _files(source, "vae")
    if local is not None and config.get("_class_name") == "AutoencoderKL" and _has_weights(local):
        _copy(local, folder, WEIGHT_FILES)
    else:
        load_vae(source).save_pretrained(folder)
    return read_json(folder / CONFIG, EXPECTED)


def put_text_encoder(source: str, encoder: Path, tokenizer: Path) -> tuple[str, str, dict[str, Any]]:
    """Copy or download a text encoder and its tokenizer.

    Returns:
        Class names of encoder and tokenizer in transformers, and the encoder's config.

    Raises:
        UserError: not to be had, or of a kind that transformers cannot load alone.
    """
    local, config = _files(source, "text_encoder")
    name = _bare_encoder(config)
    if local is not None and name is not None and _has_weights(local):
        _copy(local, encoder, WEIGHT_FILES)
        tokenizer_class = _put_local_tokenizer(source, local, tokenizer)
    else:
        from pixart_core.encoders.text import load_text_encoder

        loaded = load_text_encoder(source)
        loaded.model.save_pretrained(encoder)
        loaded.tokenizer.save_pretrained(tokenizer)
        config, name = read_json(encoder / CONFIG, EXPECTED), _in_transformers(loaded.model)
        tokenizer_class = _in_transformers(loaded.tokenizer)
    return name, tokenizer_class, config


def _put_local_tokenizer(source: str, encoder: Path, target: Path) -> str:
    """Copy the tokenizer beside or next to a local encoder; make sure that it can pad."""
    from transformers import AutoTokenizer

    neighbour = encoder.parent / "tokenizer"
    separate = encoder.name == "text_encoder" and neighbour.is_dir()
    with loading(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(neighbour if separate else encoder)
    if tokenizer.pad_token is not None and tokenizer.padding_side == "right":
        _copy(neighbour if separate else encoder, target, ("*",) if separate else TOKENIZER_FILES)
    else:  # PixArtAlphaPipeline pads on the right to a fixed length
        tokenizer.padding_side = "right"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
        tokenizer.save_pretrained(target)
    return _in_transformers(tokenizer)


def _bare_encoder(config: dict[str, Any]) -> str | None:
    """The one class whose weights a local encoder has, if a pipeline can load that class as it is.

    Not so, for example, for a T5 with its decoder: those weights are loaded and saved without it.
    """
    import transformers

    architectures = config.get("architectures") or []
    if len(architectures) != 1 or not hasattr(transformers, architectures[0]):
        return None
    name = str(architectures[0])
    if name.endswith("EncoderModel") or name == "CLIPTextModel":
        return name
    try:
        config_class = type(transformers.AutoConfig.for_model(str(config.get("model_type"))))
        plain: Any = transformers.MODEL_MAPPING[config_class]
    except (KeyError, ValueError):
        return None
    return name if name == getattr(plain, "__name__", None) and not config.get("is_encoder_decoder") else None


def _in_transformers(thing: Any) -> str:
    """The class name under which diffusers finds `thing` in transformers (it accepts no Auto class)."""
    import transformers

    for kind in type(thing).__mro__:
        if hasattr(transformers, kind.__name__):
            return str(kind.__name__)
    raise UserError(f"{type(thing).__name__} is no class of transformers: a pipeline cannot name it")


def _local(source: str, part: str) -> Path | None:
    """The folder of `part` in or at `source`; None for a hub id."""
    if not Path(source).expanduser().exists() and not source.startswith((".", "/", "~")):
        return None
    return Path(locate(source, part)["pretrained_model_name_or_path"])


def _files(source: str, part: str) -> tuple[Path | None, dict[str, Any]]:
    """The folder of `part`, downloaded if need be, and its config; (None, {}) where only loading helps."""
    folder = _local(source, part) or _downloaded(source, part)
    if folder is None or not (folder / CONFIG).is_file():
        return None, {}
    return folder, read_json(folder / CONFIG, EXPECTED)


def _downloaded(source: str, part: str) -> Path | None:
    """The files of a hub id, to be copied as they are: T5-XXL need not go through the memory.

    None where they cannot be had so, e.g. from a cache without them.
    """
    from huggingface_hub import snapshot_download

    place = locate(source, part)
    repository = place["pretrained_model_name_or_path"]
    if Path(repository).is_dir():  # in the cache, and the hub cannot be asked
        return Path(repository)
    prefix = f"{place['subfolder']}/" if "subfolder" in place else ""
    tokenizer = ["tokenizer/*"] if prefix else list(TOKENIZER_FILES)
    wanted = [prefix + name for name in WEIGHT_FILES] + (tokenizer if part == "text_encoder" else [])
    try:
        return (
            Path(snapshot_download(repository, allow_patterns=wanted, revision=place.get("revision")))
            / prefix
        )
    except Exception:  # the hub raises many kinds; `from_pretrained` tries next, and says what is wrong
        return None


def _has_weights(folder: Path) -> bool:
    """Whether weights lie there that can be copied.

    Raises:
        UserError: one of the files is cut or damaged.
    """
    files = list(folder.glob("*.safetensors"))
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass  # opening compares the header with the length of the file
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is truncated or no safetensors file: {error}") from error
    return bool(files)


def _copy(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for pattern in patterns:
        for file in sorted(source.glob(pattern)):
            if file.is_file() and not file.name.startswith("."):
                shutil.copyfile(file, target / file.name)
