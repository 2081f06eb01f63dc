"""A recipe that is right, how a test writes others, and what is said about their mistakes."""

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from pixart_core.errors import UserError
from pixart_core.recipe.load import load_recipe

GOOD = """\
name: tiny
steps:
  data:
    command: shapes
  features:
    command: extract-features
    data: {step: data}
  first:
    command: train
    features: {step: features}
    model: {}
    max_train_steps: 10
    global_batch_size: 8
    micro_batch_size: 4
    learning_rate: 2e-5
    mixed_precision: no
  second:
    command: train
    features: {step: features}
    init: {step: first}
    max_train_steps: 20
    global_batch_size: 8
    micro_batch_size: 8
"""


def recipe_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The test goes on in `tmp_path`; what is returned writes a text there and tells the file's name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "r.yaml") -> str:
        (tmp_path / name).write_text(textwrap.dedent(text))
        return name

    return write


def mistakes(source: str, overrides: tuple[str, ...] = (), **options: str) -> list[str]:
    """The lines that `load_recipe` says about `source`, without the one that counts them."""
    with pytest.raises(UserError) as caught:
        load_recipe(source, overrides, **options)
    lines = str(caught.value).splitlines()
    if len(lines) == 1:
        return lines
    assert lines[0].startswith(f"{len(lines) - 1} mistakes")
    return [line.strip() for line in lines[1:]]
