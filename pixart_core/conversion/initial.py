"""`pixart train` may start from whatever `pixart convert` reads.

Training itself reads folders and is given this reader by the command, so that it does not depend on foreign
formats; and what draws validation images, so that it does not depend on sampling.
"""

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pixart_core.conversion.detect import load_any
from pixart_core.conversion.infer import UntoldError
from pixart_core.errors import UserError
from pixart_core.progress import Progress
from pixart_core.recipe.training import TrainStep
from pixart_core.recipe.watching import ValidationOptions
from pixart_core.training import loop
from pixart_core.training.initial import Initial
from pixart_core.training.start import Start
from pixart_core.training.validation_images import Painter


def read_any(source: str) -> Initial:
    """Read `init` from any format that `load_any` knows.

    Raises:
        UserError: see `load_any`; what only an option of `pixart convert` can tell names that command.
    """
    try:
        loaded = load_any(source)
    except UntoldError as error:
        told = f"{error} to `pixart convert --from {source} --to pixart`, and start from what it makes"
        raise UserError(told) from error
    return Initial(loaded.model, loaded.facts, loaded.report.y_embedding)


def open_painter(options: ValidationOptions, start: Start, accelerator: Accelerator) -> Painter:
    """`sampling.validation.open_painter`; a training that draws nothing does not wait for its imports."""
    from pixart_core.sampling import validation

    return validation.open_painter(options, start, accelerator)


def run_training(step: TrainStep, output: Path, progress: Progress) -> dict[str, Any]:
    """`training.loop.run_training` whose `init` may be of any format, and that can draw."""
    return loop.run_training(step, output, progress, read_any, open_painter)
