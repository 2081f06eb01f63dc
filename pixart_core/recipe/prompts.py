"""Files of prompts: text with one a line, or JSONL or CSV with options for each."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from pixart_core.errors import UserError
from pixart_core.recipe.base import Strict
from pixart_core.recipe.mistakes import did_you_mean, dotted, explain

MOST_MISTAKES = 20  # told at once


def _check_ratio(text: str) -> str:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?:[0-9]{1,6}(\.[0-9]{1,6})?", text):
        raise ValueError(f"expected width:height as in 9:16, got {text!r}")
    if not all(float(part) for part in text.split(":")):
        raise ValueError(f"expected two positive numbers, got {text!r}")
    return text


# width:height
AspectRatio = Annotated[str, AfterValidator(_check_ratio)]


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("is no text that can be written (it holds half a character)") from error
    return text


# What files can hold: no lone surrogates, as broken JSON and arguments of other encodings bring them.
Text = Annotated[str, AfterValidator(_check_text)]


def check_one_size(ar: str | None, height: int | None, width: int | None) -> None:
    """Raises:
    ValueError: half a size, or two of them."""
    if (height is None) != (width is None):
        raise ValueError("give height and width together")
    if ar is not None and height is not None:
        raise ValueError("give either ar or height and width")


class PromptOptions(Strict):
    """One prompt and what is special about it; what is not given is as for all the others.

    Attributes:
        seed: that of its image itself; further images of the prompt derive theirs from it.
        height, width, ar: pixels, or width:height; see `SampleStep`.
        meta: ground truth, which a JSONL file may bring along for evaluation.
    """

    prompt: Text
    id: Text | None = None
    seed: NonNegativeInt | None = Field(default=None, lt=2**63)
    height: PositiveInt | None = None
    width: PositiveInt | None = None
    ar: AspectRatio | None = None
    negative_prompt: Text | None = None
    guidance_scale: NonNegativeFloat | None = Field(default=None, allow_inf_nan=False)
    num_inference_steps: PositiveInt | None = None
    images_per_prompt: PositiveInt | None = None
    meta: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole_size(self) -> Self:
        check_one_size(self.ar, self.height, self.width)
        return self


def has_options(path: Path) -> bool:
    """Whether `path` is a file whose prompts may have options of their own."""
    return path.suffix.lower() in (".jsonl", ".csv") and path.is_file()


def read_prompt_file(path: Path) -> list[PromptOptions]:
    """The prompts of a text, JSONL (`{"prompt": ..., "seed": ...}` a line) or CSV file (a header first).

    Raises:
        UserError: it cannot be read, holds no prompt, or has mistakes (each told with its line).
    """
    text = _read_text(path)
    if path.suffix.lower() == ".jsonl":
        prompts = _read_rows(path, _json_rows(text))
    elif path.suffix.lower() == ".csv":
        prompts = _read_rows(path, _csv_rows(path, text))
    else:
        lines = (line.strip() for line in text.splitlines())
        prompts = [PromptOptions(prompt=line) for line in lines if line]
    if not prompts:
        raise UserError(f"{path} holds no prompts")
    return prompts


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder without a manifest; give a file of prompts") from error
    except OSError as error:
        raise UserError(f"cannot read prompts from {path}: {error}") from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8; save the file in that encoding") from error


Row = tuple[int, dict[str, Any] | str]  # line of the file, its fields, or why it has none


def _json_rows(text: str) -> Iterator[Row]:
    # Not splitlines: JSON may hold U+2028 as it is.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield number, f"not JSON ({error})"
            continue
        yield number, row if isinstance(row, dict) else 'expected an object as {"prompt": "a red fox"}'


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    """Rows of cells that are not empty."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        known = PromptOptions.model_fields.keys() - {"meta"}
        for column in reader.fieldnames or ():
            if column not in known:
                raise UserError(f"{path}:1: unknown column {column!r}{did_you_mean(column, known)}")
        if "prompt" not in (reader.fieldnames or ()):
            raise UserError(f"{path}:1: no column named prompt; the first line names the columns")
        for row in reader:
            if None in row:
                yield reader.line_num, "more cells than columns; quote commas in a prompt"
                continue
            yield reader.line_num, {column: cell for column, cell in row.items() if cell}
    except csv.Error as error:
        raise UserError(f"{path}: not CSV after line {reader.line_num} ({error})") from error


def _read_rows(path: Path, rows: Iterator[Row]) -> list[PromptOptions]:
    prompts, wrong = [], []
    lines: dict[str, int] = {}
    for number, row in rows:
        if isinstance(row, str):
            wrong.append(f"{path}:{number}: {row}")
            continue
        given = {name: value for name, value in row.items() if value is not None}
        if isinstance(given.get("id"), int):
            given["id"] = str(given["id"])
        try:
            prompt = PromptOptions.model_validate(given)
        except ValidationError as error:
            for mistake in explain(error, PromptOptions, given):
                where = f"{dotted(mistake.path)}: " if mistake.path else ""
                wrong.append(f"{path}:{number}: {where}{mistake.message}")
            continue
        if not prompt.prompt.strip():
            wrong.append(f"{path}:{number}: the prompt is empty")
        if prompt.id is not None and (first := lines.setdefault(prompt.id, number)) != number:
            wrong.append(f"{path}:{number}: id {prompt.id!r} is that of line {first} already")
        prompts.append(prompt)
    if wrong:
        more = [f"and {len(wrong) - MOST_MISTAKES} more"] if len(wrong) > MOST_MISTAKES else []
        told = [*wrong[:MOST_MISTAKES], *more]
        raise UserError(told[0] if len(told) == 1 else f"{len(wrong)} mistakes:\n  " + "\n  ".join(told))
    return prompts
