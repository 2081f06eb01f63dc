"""How many tokens a caption has for a text encoder: its tokenizer alone, without torch in each process."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pixart_core.errors import UserError

_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.txt", "vocab.json")


@dataclasses.dataclass
class TokenLengths:
    """A tokenizer that can be sent to another process.

    Attributes:
        name: hub id, or the folder's last name.
        max_tokens: longer texts are cut; at most what the tokenizer says that its model takes.
        tokenizer: of `tokenizers`, or a slow one of transformers.
    """

    name: str
    max_tokens: int
    tokenizer: Any

    def of(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, stripped of blanks, uncut and with the end mark: as text encoders count."""
        # Half an emoji, cut from JSON, has no UTF-8.
        stripped = [text.strip().encode("utf-8", "replace").decode() for text in texts]
        if isinstance(self.tokenizer, Tokenizer):
            return [len(encoding) for encoding in self.tokenizer.encode_batch_fast(stripped)]
        return [len(ids) for ids in self.tokenizer(stripped, verbose=False)["input_ids"]]


def load_token_lengths(source: str, max_tokens: int = 120) -> TokenLengths:
    """Load the tokenizer of a text encoder.

    Args:
        source: hub id or folder of the encoder, its pipeline, or its tokenizer.

    Raises:
        UserError: it is not there, cannot be reached, or cannot be loaded.
    """
    from transformers import AutoTokenizer

    from pixart_core.encoders.pretrained import loading

    place = _place(source)
    with loading(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(**place)
    limit = min(max_tokens, tokenizer.model_max_length)
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        return TokenLengths(_name(source), limit, tokenizer)
    fast = Tokenizer.from_str(fast.to_str())  # a copy of our own: settings below shall stay here
    fast.no_truncation()
    fast.no_padding()
    return TokenLengths(_name(source), limit, fast)


def _name(source: str) -> str:
    """A hub id as it is, of a path the last name that says something."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return source
    folder = folder.resolve()
    plain = folder.name in ("tokenizer", "text_encoder", "model")
    return f"{folder.parent.name}/{folder.name}" if plain else folder.name


def _place(source: str) -> dict[str, Any]:
    """Where the tokenizer lies, as arguments of `from_pretrained`."""
    from pixart_core.encoders.pretrained import locate

    folder = Path(source).expanduser()
    if not folder.is_dir():
        place = locate(source, "text_encoder")
        if "subfolder" in place:
            return place | {"subfolder": "tokenizer"}
        folder = Path(place["pretrained_model_name_or_path"])
        if not folder.is_dir():  # else it is in the cache, and the hub cannot be asked
            return place
    beside = [folder.parent / "tokenizer"] if folder.name == "text_encoder" else []
    for candidate in (folder / "tokenizer", *beside, folder):
        if any((candidate / name).is_file() for name in _FILES):
            return {"pretrained_model_name_or_path": str(candidate)}
    raise UserError(f"tokenizer: {source} holds none ({', '.join(_FILES)})")
