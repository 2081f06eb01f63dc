"""What a training step starts from: the model that `init` holds, and what is known about it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from pixart_core.artifacts.checkpoint import ModelFacts, read_facts
from pixart_core.artifacts.uncond import read_uncond
from pixart_core.errors import UserError
from pixart_core.models.build import Transformer
from pixart_core.models.files import load_transformer


class Initial(NamedTuple):
    """A model, its facts, and its learned unconditional caption where it has one."""

    model: Transformer
    facts: ModelFacts
    y_embedding: Float[Tensor, "l caption"] | None


# From `init` (a path or hub id). The command passes one that knows every format that `pixart convert` reads.
ReadInit = Callable[[str], Initial]


def read_folder(source: str) -> Initial:
    """Read `init` from a checkpoint, pipeline or transformer folder.

    Raises:
        UserError: anything else; weights that do not fit their config; a card that cannot be used.
    """
    folder = Path(source)
    if folder.is_file():
        raise UserError(
            f"{source} is a file; make a checkpoint of it: "
            f"pixart convert --from {source} --to pixart --output FOLDER"
        )
    facts = read_facts(folder)
    return Initial(load_transformer(folder), facts, read_uncond(folder))
