"""The prompts of T2I-CompBench, from a folder or the hub: the project carries none of their text."""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Literal

from pixart_core.errors import UserError
from pixart_core.evaluation.compbench.spatial import PLACES

Kind = Literal["spatial", "action", "spatial-action"]
PROMPTS_A_CATEGORY = 300
_MAX_NAME = 200  # bytes; file systems allow 255, and an index and a suffix follow
_PLACE = rf"(?:{'|'.join(PLACES)}|below (?:the|an?)\b)"
_IS_AT = re.compile(rf"\b(?:is|are|was|were) {_PLACE}\b", re.IGNORECASE)
_AT = re.compile(rf"\b{_PLACE}\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt of a category.

    Attributes:
        index: its number in the file, blank lines not counted.
        kind: which scores make up that of a complex prompt; None in other categories.
    """

    category: str
    index: int
    text: str
    kind: Kind | None = None


def read_prompts(source: str, categories: Collection[str]) -> dict[str, tuple[Prompt, ...]]:
    """The validation prompts of `categories`.

    Args:
        source: a folder of `{category}_val.txt` files, or the id of a data set on the hub whose
            configurations are called so.

    Raises:
        UserError: a file is missing, empty or no text; or the data set cannot be had.
    """
    folder = Path(source).expanduser()
    read: Callable[[str], list[str]] = _of_folder(folder) if folder.is_dir() else _of_hub(source)
    found = {}
    for category in categories:
        texts = read(f"{category}_val")
        kinds = _kinds(texts, read) if category == "complex" else [None] * len(texts)
        found[category] = tuple(
            Prompt(category, index, text, kind)
            for index, (text, kind) in enumerate(zip(texts, kinds, strict=True))
        )
    return found


def prompt_key(text: str) -> str:
    """What names a prompt's files: one space between words, no character that a file name cannot hold, no
    underscore (the official code cuts names at the first), at most 200 bytes."""
    plain = re.sub(r"[/\\\x00-\x1f]", "-", " ".join(text.replace("_", " ").split())).lstrip(".")
    return plain.encode()[:_MAX_NAME].decode(errors="ignore").strip()


def kind_of(text: str) -> Kind:
    """Whether a complex prompt says where something is, what happens, or both.

    The benchmark's own lists of `complex_val` (212 action, 58 spatial, 30 both) follow this: a place after a
    form of "to be" is spatial, after any other verb both.
    """
    if _IS_AT.search(text):
        return "spatial"
    return "spatial-action" if _AT.search(text) else "action"


def clean_lines(text: str) -> list[str]:
    """The lines of a prompt file without line ends, blanks and empty lines."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _kinds(texts: Iterable[str], read: Callable[[str], list[str]]) -> list[Kind]:
    """By the benchmark's lists where they lie beside the prompts, else by `kind_of`."""

    def first_sentence(text: str) -> str:
        return text.split(".")[0].lower()

    try:
        spatial, action = (
            {first_sentence(text) for text in read(f"complex_val_{name}")} for name in ("spatial", "action")
        )
    except UserError:
        return [kind_of(text) for text in texts]

    def listed(text: str) -> Kind:
        first = first_sentence(text)
        return "spatial" if first in spatial else "action" if first in action else "spatial-action"

    return [listed(text) for text in texts]


def _of_folder(folder: Path) -> Callable[[str], list[str]]:
    def read(name: str) -> list[str]:
        path = folder / f"{name}.txt"
        try:
            lines = clean_lines(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError as error:
            raise UserError(
                f"{path}: no such file; compbench.prompts is a folder of the benchmark's prompts (its "
                "examples/dataset), or leave the category out of compbench.categories"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as text ({error})") from error
        if not lines:
            raise UserError(f"{path} holds no prompts")
        return lines

    return read


def _of_hub(source: str) -> Callable[[str], list[str]]:
    if source.startswith(("/", ".", "~")) or source.count("/") != 1:
        raise UserError(
            f"compbench.prompts: {source} is no folder; give a folder of {{category}}_val.txt files or "
            "the id of the data set on the hub"
        )

    import datasets  # takes seconds to import

    refused = _refused_by_hub(source, Path(datasets.config.HF_DATASETS_CACHE))

    def read(name: str) -> list[str]:
        try:
            if refused is not None:
                raise refused
            loaded: Any = datasets.load_dataset(source, name)
        except Exception as error:  # `datasets` raises a dozen kinds, network errors among them
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"compbench.prompts: {source} ({name}) cannot be had from the hub ({reason}); download it "
                "where there is network, or give a folder of {category}_val.txt files"
            ) from error
        rows = next(iter(loaded.values()))
        column = next(iter(rows.features))
        return clean_lines("\n".join(str(text) for text in rows[column]))

    return read


def _refused_by_hub(source: str, cache: Path) -> Exception | None:
    """Why the hub does not give a data set that is not in the cache either.

    Asked once: `datasets` would try for half a minute before it says that there is no network.
    """
    from huggingface_hub import HfApi

    if (cache / source.replace("/", "___")).is_dir():
        return None
    try:
        HfApi().dataset_info(source, timeout=20)
    except Exception as error:  # no network, offline mode, no such data set, no access: many classes
        return error
    return None
