"""The images of a WebDataset tar, with their captions."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pixart_core.artifacts.manifest import image_id
from pixart_core.data.candidates import Candidate, LazyCandidates, Opened, Part, file_state, key_of
from pixart_core.data.images import IMAGE_SUFFIXES, OTHER_IMAGE, is_unread_image
from pixart_core.data.side_texts import read_text, side_names
from pixart_core.data.tars import TarIndex, index_tar, read_member
from pixart_core.errors import UserError

Identify = Callable[[str], tuple[str, str]]
"""Member → (id, name for messages)."""


def tar_part(root: str, name: str, identify: Identify | None = None) -> Part:
    """The archive `name` (from `root`).

    Args:
        identify: ids and names of its images; default: from the archive's name and the member.
    """
    path = Path(root, name)
    key = key_of("tar", name, file_state(str(path)))
    return Part(name, key, functools.partial(_open, path, name, identify), archive=True)


def _open(path: Path, name: str, identify: Identify | None) -> Opened:
    try:
        index = index_tar(path)
    except UserError as error:
        return Opened((), [{"path": name, "reason": str(error).removeprefix(f"{path}: ")}])
    repeated = "name repeated in the archive"
    problems = [{"path": f"{name}/{member}", "reason": repeated} for member in index.repeated]
    unread = [member for member in index.members if is_unread_image(member, index.members)]
    problems += [{"path": f"{name}/{member}", "reason": OTHER_IMAGE} for member in unread]
    if index.damage:
        problems.append({"path": name, "reason": index.damage})
    images = list(_images(index.members))

    def make(number: int) -> Candidate:
        return _candidate(path, name, images[number], index, identify)

    return Opened(LazyCandidates(range(len(images)), make), problems)


def _candidate(path: Path, name: str, member: str, index: TarIndex, identify: Identify | None) -> Candidate:
    def reader(member: str) -> Callable[[], bytes]:
        return functools.partial(read_member, path, *index.members[member])

    offset, length = index.members[member]
    sides = {suffix: reader(side) for suffix, side in side_names(member) if side in index.members}
    id_, shown = (image_id(name, member), f"{name}/{member}") if identify is None else identify(member)
    return Candidate(
        id_, name, member, shown, reader(member), functools.partial(read_text, sides), offset, length
    )


def _images(members: Mapping[str, Any]) -> Iterator[str]:
    """The image of each sample; `x.mask.png` beside `x.png` is another field, no image."""
    images = [
        member
        for member in members
        if PurePosixPath(member).suffix.lower() in IMAGE_SUFFIXES
        and not PurePosixPath(member).name.startswith(".")
    ]
    stems = {str(PurePosixPath(member).with_suffix("")) for member in images}
    for member in images:
        folder, base = os.path.split(member)
        key = os.path.join(folder, base.split(".", 1)[0])
        if str(PurePosixPath(member).with_suffix("")) == key or key not in stems:
            yield member
