"""Plans a feature store anew, beside it, so that nothing is given up for a plan that does not come back."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pixart_core.artifacts.feature_index import read_index, write_index
from pixart_core.artifacts.feature_plan import FeaturePlan
from pixart_core.artifacts.publish import staged_file
from pixart_core.errors import UserError


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A folder for `replan` in the store `folder`; removed at the end, or by the next repair after a kill."""
    scratch = folder / ".replanned"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def replan(
    scratch: Path, folder: Path, lost: set[str], plan_in: Callable[[Path], FeaturePlan]
) -> FeaturePlan:
    """The plan of `folder`, made again in `scratch` from its data.

    Args:
        lost: damaged files of `folder`; the last segment of the plan may be among them.
        plan_in: opens the plan in a folder and extends it by all the data.

    Raises:
        UserError: the data do not give the plan that was there.
    """
    index = read_index(folder)
    kept = sorted(path for path in folder.glob("plan-*.safetensors") if path.name not in lost)
    for path in kept:
        os.symlink(path.absolute(), scratch / path.name)
    if index.plan is not None:
        write_index(scratch, index.plan, [e for e in index.entries.values() if e["kind"] == "plan"])
    expected = {path.name for path in kept} | {name for name in lost if name.startswith("plan-")}
    try:
        plan = plan_in(scratch)
    except UserError as error:
        raise UserError(str(error).replace(str(scratch), str(folder))) from error
    if set(plan.segments) != expected:
        raise UserError(
            f"{folder}: the data hold other images than those that it was planned with; restore them, or "
            "choose another output"
        )
    return plan


def restore_plan(scratch: Path, folder: Path, lost: set[str]) -> None:
    """Bring the segments that are `lost` from `scratch` into the store; their index lines are there still.

    Raises:
        PixartError: the disk is full.
    """
    for name in sorted(name for name in lost if name.startswith("plan-")):
        with staged_file(folder / name) as partial:
            shutil.copyfile(scratch / name, partial)
