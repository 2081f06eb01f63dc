"""What `--data` may be, and the images in it, in one stable order, before any is looked at.

A folder (recursive; images with side files or a metadata file, tars, parquet files), one such file or
several (glob, braces), or `hf:ID[/split]` through `datasets`.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pixart_core.artifacts.manifest import image_id
from pixart_core.artifacts.patterns import expand_pattern, fixed_part, is_pattern
from pixart_core.data.candidates import (
    Candidate,
    Listing,
    Opened,
    Part,
    Size,
    file_state,
    key_of,
    problem_part,
)
from pixart_core.data.folders import Found, Walk, files_found, kind_of
from pixart_core.data.images import IMAGE_SUFFIXES
from pixart_core.data.side_texts import read_text
from pixart_core.data.tar_samples import tar_part
from pixart_core.errors import UserError

# Loose files are read together until a name's hash ends so: about 256, and another file nearby changes only
# the group that it is in.
_GROUP = 256
_LARGEST_GROUP = 1024


def list_images(data: str) -> Listing:
    """Find the images of `data`.

    Raises:
        UserError: nothing there, or not a kind of data that is known.
    """
    if data.startswith("hf:"):
        from pixart_core.data.hub import list_hub  # `datasets` takes seconds to import

        return list_hub(data)
    # abspath, not resolve: a linked file belongs where its link is.
    root = Path(os.path.abspath(data))
    if root.is_dir():
        return _listing(root, lambda metadata: Walk(str(root), metadata=metadata))
    if root.is_file():
        files, root = [root], root.parent
        if kind_of(files[0].name) not in ("tar", "parquet"):
            raise UserError(f"{data}: not a folder and no uncompressed .tar or .parquet file of images")
        _refuse_without_images(files[0])
    else:
        files, root = _expand(data)
    names = sorted(_relative(os.path.abspath(file), str(root)) for file in files)
    return _listing(root, lambda _: files_found(str(root), names))


def nothing_found(data: str) -> UserError:
    """The error for a source that holds no images at all."""
    kinds = ", ".join(sorted(IMAGE_SUFFIXES))
    return UserError(f"{data}: holds no images ({kinds}), no .tar and no .parquet files")


def _expand(pattern: str) -> tuple[list[Path], Path]:
    """(files, fixed part) of a pattern."""
    files = expand_pattern(pattern)
    if not files:
        kind = "matches no file" if is_pattern(pattern) else "no such folder or file"
        raise UserError(f"{pattern}: {kind}")
    return files, fixed_part(pattern)


def _refuse_without_images(file: Path) -> None:
    """Beside other files a table without images may be theirs; named alone, it is a mistake."""
    if kind_of(file.name) == "parquet":
        from pixart_core.data.parquet import ParquetRows

        ParquetRows(file)


def _listing(root: Path, found: Callable[[bool], "Walk | Iterator[Found]"]) -> Listing:
    """Args: found: walks the files; whether metadata files are to be read."""

    def size() -> Size:
        images, tars, tables = 0, 0, 0
        for item in found(False):
            images += item.kind in ("image", "problem")
            tars += item.kind == "tar"
            if item.kind == "parquet" and not _belongs_to_tar(str(root), item.name):
                from pixart_core.data.parquet import count_rows

                tables += 1
                images += count_rows(os.path.join(root, item.name))
        return Size(None if tars else images, tars + tables)

    return Listing(root, lambda: _parts(str(root), iter(found(True))), size)


def _parts(root: str, found: Iterator[Found]) -> Iterator[Part]:
    group: list[Found] = []
    for item in found:
        if item.kind == "image":
            group.append(item)
            if int(image_id(item.name), 16) % _GROUP and len(group) < _LARGEST_GROUP:
                continue
        if group:
            yield _files_part(root, group)
            group = []
        if item.kind == "problem":
            yield problem_part(item.name, item.reason)
        elif item.kind == "tar":
            yield tar_part(root, item.name)
        elif item.kind == "parquet" and not _belongs_to_tar(root, item.name):
            from pixart_core.data.parquet import parquet_part

            yield parquet_part(root, item.name)
    if group:
        yield _files_part(root, group)


def _belongs_to_tar(root: str, name: str) -> bool:
    """img2dataset writes what it knows of 00000.tar into 00000.parquet, the images not among it."""
    path = os.path.join(root, name)
    if not os.path.isfile(path.removesuffix(".parquet") + ".tar"):
        return False
    from pixart_core.data.parquet import holds_images

    return not holds_images(path)


def _files_part(root: str, group: Sequence[Found]) -> Part:
    facts = []
    for item in group:
        names = (item.name, *(name for _, name in item.sides))
        states = [file_state(os.path.join(root, name)) for name in names]
        row = None if item.row is None else item.row[0].digest(item.row[1])
        facts.append((names, states, row))
    candidates = [_candidate(root, item) for item in group]
    return Part(group[0].name, key_of("files", facts), lambda: Opened(candidates))


def _candidate(root: str, item: Found) -> Candidate:
    sides = {suffix: functools.partial(_read, os.path.join(root, name)) for suffix, name in item.sides}
    row = None if item.row is None else functools.partial(item.row[0].text, item.row[1])
    return Candidate(
        id=image_id(item.name),
        path=item.name,
        member=None,
        name=item.name,
        image=functools.partial(_read, os.path.join(root, item.name)),
        text=functools.partial(read_text, sides, row),
    )


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _relative(path: str, root: str) -> str:
    """`path` from `root`, or as it is if a link led out of it."""
    start = os.path.join(root, "")
    return path[len(start) :] if path.startswith(start) else path
