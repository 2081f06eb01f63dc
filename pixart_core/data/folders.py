"""Folders of images, walked in one order that depends on names alone, a folder at a time."""

import dataclasses
import os
from collections.abc import Container, Iterator, Sequence
from typing import Literal

from pixart_core.data.images import IMAGE_SUFFIXES, OTHER_IMAGE, is_unread_image
from pixart_core.data.metadata import METADATA_NAMES, MetadataTable, metadata_in
from pixart_core.data.side_texts import side_names
from pixart_core.errors import UserError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
_COMPRESSED = "compressed archive: unpack it to .tar"

Kind = Literal["image", "tar", "parquet", "problem"]


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A file that matters.

    Attributes:
        name: from the root, with /; absolute for a file that a pattern found elsewhere.
        reason: of a problem.
        sides: suffix and name of each side file that is there.
        row: of an image: its metadata table and the row in it.
    """

    kind: Kind
    name: str
    reason: str = ""
    sides: tuple[tuple[str, str], ...] = ()
    row: tuple[MetadataTable, int] | None = None


def kind_of(name: str, names: Container[str] = ()) -> Kind | None:
    """What a file of this name, beside `names`, holds; None for what is no source of images."""
    # Text, not PurePosixPath: this runs for each of millions of files.
    suffix = os.path.splitext(name)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if suffix == ".tar":
        return "tar"
    if suffix == ".parquet":
        return None if os.path.basename(name) in METADATA_NAMES else "parquet"
    told = is_unread_image(name, names) or name.lower().endswith(COMPRESSED)
    return "problem" if told else None


def _problem_of(name: str) -> str:
    """What is wrong with a file whose name tells it."""
    return _COMPRESSED if name.lower().endswith(COMPRESSED) else OTHER_IMAGE


class Walk:
    """The files below a folder, in the order of their names from it; hidden ones are left out.

    Links are followed, each real folder is visited once. What cannot be read is a problem, not silence.
    """

    def __init__(self, root: str, *, metadata: bool = True) -> None:
        """Args: metadata: whether to read metadata files (to count the images, they do not matter)."""
        self._root = root
        self._metadata = metadata
        self._visited: set[tuple[int, int]] = set()
        self._tables: list[MetadataTable] = []

    def __iter__(self) -> Iterator[Found]:
        """Raises UserError: the root or a metadata file cannot be read."""
        open_folders = [self._folder("")]
        while open_folders:
            item = next(open_folders[-1], None)
            if item is None:
                open_folders.pop()
            elif isinstance(item, str):
                open_folders.append(self._folder(item))
            else:
                yield item

    def _folder(self, folder: str) -> Iterator[Found | str]:
        """What is in one folder ("" or with a / at the end); a text is a folder to go into."""
        try:
            entries = self._entries(folder)
        except OSError as error:
            if not folder:
                raise UserError(f"{self._root}: cannot be read ({error.strerror})") from error
            yield Found("problem", folder.rstrip("/"), f"folder cannot be read: {error.strerror}")
            return
        # A folder's name with its / sorts as the names below it do.
        names = sorted(entries)
        table = metadata_in(self._root, folder, names) if self._metadata else None
        if table is not None:
            self._tables.append(table)
        for name in names:
            path, entry = folder + name, entries[name]
            if name.endswith("/"):
                yield path
            elif (kind := kind_of(name, entries)) is not None:
                yield self._found(kind, path, name, entry, entries)
        if table is not None:
            self._tables.pop()
            yield from (Found("problem", row["path"], row["reason"]) for row in table.unused())

    def _entries(self, folder: str) -> dict[str, str]:
        """Name (of a folder with /) and, of what is no plain file, what it is instead."""
        place = os.path.join(self._root, folder)
        stat = os.stat(place)
        identity = (stat.st_dev, stat.st_ino)
        if identity in self._visited:
            return {}
        self._visited.add(identity)
        found = {}
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                kind = _entry_kind(entry)
                found[f"{entry.name}/" if kind == "folder" else entry.name] = kind
        return found

    def _found(self, kind: Kind, path: str, name: str, entry: str, entries: dict[str, str]) -> Found:
        # Of a file that cannot be used too: its row is not to be told as well.
        row = _row_of(path, self._tables) if kind in ("image", "problem") else None
        if entry != "file":
            return Found("problem", path, entry)
        if kind == "problem":
            return Found("problem", path, _problem_of(name))
        if kind != "image":
            return Found(kind, path)
        folder = path[: -len(name)]
        sides = tuple(
            (suffix, folder + side) for suffix, side in side_names(name) if entries.get(side) == "file"
        )
        return Found("image", path, sides=sides, row=row)


def _entry_kind(entry: "os.DirEntry[str]") -> str:
    """ "folder", "file", or why it is neither."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        return "link to nothing" if entry.is_symlink() else "no plain file (a pipe, socket or device)"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _row_of(path: str, tables: Sequence[MetadataTable]) -> tuple[MetadataTable, int] | None:
    """The row of an image in the table of the nearest folder that names it."""
    found = [(table, table.find(path)) for table in tables]  # all are asked: a row that another hides is used
    return next(((table, number) for table, number in reversed(found) if number is not None), None)


def files_found(root: str, names: Sequence[str]) -> Iterator[Found]:
    """The same for files that were named one by one or by a pattern: `names` from the root, sorted.

    Their side files and metadata count although they were not named.
    """
    tables: dict[str, MetadataTable | None] = {}
    for name in names:
        kind = kind_of(name)
        if kind == "problem":
            yield Found("problem", name, _problem_of(name))
        elif kind == "image":
            sides = tuple(side for side in side_names(name) if os.path.isfile(os.path.join(root, side[1])))
            above = [_table_of(root, folder, tables) for folder in _folders_of(name)]
            yield Found(
                "image", name, sides=sides, row=_row_of(name, [table for table in above if table is not None])
            )
        elif kind is not None:
            yield Found(kind, name)


def _folders_of(name: str) -> list[str]:
    """The folders above a file, outermost first, "" or with a / at the end."""
    if name.startswith("/"):
        return []
    parts = name.split("/")[:-1]
    return ["".join(f"{part}/" for part in parts[:count]) for count in range(len(parts) + 1)]


def _table_of(root: str, folder: str, tables: dict[str, MetadataTable | None]) -> MetadataTable | None:
    if folder not in tables:
        names = [name for name in METADATA_NAMES if os.path.isfile(os.path.join(root, folder, name))]
        tables[folder] = metadata_in(root, folder, names)
    return tables[folder]
