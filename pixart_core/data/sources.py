"""What `--data` may be, and the images in it, in one stable order, before any is looked at.

A folder (recursive; images with same-stem `.txt` / `.json`, and tars), one WebDataset tar or several
(glob, braces), or `hf:ID[/split]` through `datasets`.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pixart_core.artifacts.manifest import image_id
from pixart_core.artifacts.patterns import expand_pattern, fixed_part, is_pattern
from pixart_core.data.images import IMAGE_SUFFIXES, UnusableImageError
from pixart_core.data.tars import index_tar, read_member
from pixart_core.errors import UserError

CAPTION_KEYS = ("caption", "text", "prompt")
_SIDECARS = (".txt", ".json", ".cls")
_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An image that may be usable.

    Attributes:
        id: of the manifest.
        path, member: as in `ImageRecord`; paths are absolute.
        name: for messages: the path from the data's root, and the member.
        image: reads the encoded image.
        text: reads (caption, the sample's JSON); raises UnusableImageError for a broken side file.
    """

    id: str
    path: str
    member: str | None
    name: str
    image: Callable[[], bytes]
    text: Callable[[], tuple[str | None, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        root: folder that ids and names are relative to.
        candidates: in an order that depends on names alone.
        dropped: {"path", "reason"} of what is no candidate but should not vanish silently.
    """

    root: Path
    candidates: Sequence[Candidate]
    dropped: Sequence[dict[str, str]]


def list_images(data: str) -> Listing:
    """Find the images of `data`.

    Raises:
        UserError: nothing there, nothing in it, or not a kind of data that is known.
    """
    if data.startswith("hf:"):
        return _list_hub(data)
    path = Path(data)
    if path.is_dir():
        root, files = path, _walk(path)
    elif path.is_file():
        if path.suffix != ".tar":
            raise UserError(f"{data}: not a folder and not an uncompressed .tar of images")
        root, files = path.parent, [path]
    else:
        root, files = _expand(data)
    # abspath, not resolve: a linked file belongs where its link is.
    root = Path(os.path.abspath(root))
    listing = _list_files(root, [Path(os.path.abspath(file)) for file in files])
    if not listing.candidates and not listing.dropped:
        raise UserError(f"{data}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}) and no .tar files")
    return listing


def _walk(folder: Path) -> list[Path]:
    """Every file below `folder`, hidden ones left out, links followed (a circle of links once)."""
    files: list[Path] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return files


def _expand(pattern: str) -> tuple[Path, list[Path]]:
    """(fixed part, files) of a pattern."""
    files = expand_pattern(pattern)
    if not files:
        kind = "matches no file" if is_pattern(pattern) else "no such folder or file"
        raise UserError(f"{pattern}: {kind}")
    return fixed_part(pattern), files


def _list_files(root: Path, files: Sequence[Path]) -> Listing:
    candidates: list[Candidate] = []
    dropped: list[dict[str, str]] = []
    names = {_relative(file, root): file for file in files}
    for name in sorted(names):
        file = names[name]
        if name.lower().endswith(_COMPRESSED_TARS):
            dropped.append({"path": name, "reason": "compressed archive: unpack it to .tar"})
        elif file.suffix.lower() == ".tar":
            found, problems = _list_tar(name, file)
            candidates += found
            dropped += problems
        elif file.suffix.lower() in IMAGE_SUFFIXES:
            sides = {k: names[side].read_bytes for k, side in _side_files(name) if side in names}
            candidates.append(
                Candidate(image_id(name), str(file), None, name, file.read_bytes, _text_reader(sides))
            )
    return Listing(root, candidates, dropped)


def _list_tar(name: str, path: Path) -> tuple[list[Candidate], list[dict[str, str]]]:
    try:
        index = index_tar(path)
    except UserError as error:
        return [], [{"path": name, "reason": str(error).removeprefix(f"{path}: ")}]
    repeated = "name repeated in the archive"
    dropped = [{"path": f"{name}/{member}", "reason": repeated} for member in index.repeated]
    if index.damage:
        dropped.append({"path": name, "reason": index.damage})

    def reader(member: str) -> Callable[[], bytes]:
        return functools.partial(read_member, path, *index.members[member])

    candidates = [
        Candidate(
            id=image_id(name, member),
            path=str(path),
            member=member,
            name=f"{name}/{member}",
            image=reader(member),
            text=_text_reader({k: reader(side) for k, side in _side_files(member) if side in index.members}),
        )
        for member in _tar_images(index.members)
    ]
    return candidates, dropped


def _tar_images(members: Mapping[str, Any]) -> Iterator[str]:
    """The image of each WebDataset sample; `x.mask.png` beside `x.png` is another field, no image."""
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


def _side_files(name: str) -> list[tuple[str, str]]:
    stem = name[: -len(PurePosixPath(name).suffix)]
    return [(suffix, stem + suffix) for suffix in _SIDECARS]


def _text_reader(
    sides: Mapping[str, Callable[[], bytes]],
) -> Callable[[], tuple[str | None, dict[str, Any]]]:
    def read() -> tuple[str | None, dict[str, Any]]:
        texts = {}
        for suffix, reader in sides.items():
            try:
                texts[suffix] = reader().decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise UnusableImageError(f"its {suffix} file is not UTF-8") from error
        meta = _parse_json(texts[".json"]) if ".json" in texts else {}
        if ".cls" in texts:
            meta.setdefault("cls", texts[".cls"].strip())
        caption = texts.get(".txt")
        if caption is None:
            caption = next((meta[key] for key in CAPTION_KEYS if isinstance(meta.get(key), str)), None)
        return (caption.strip() or None if caption else None), meta

    return read


def _parse_json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UnusableImageError("its .json file is not JSON") from error
    if not isinstance(value, dict):
        raise UnusableImageError("its .json file is not a JSON object")
    return value


def _list_hub(data: str) -> Listing:
    from pixart_core.data.hub import HubRows  # `datasets` takes seconds to import

    rows = HubRows.open(data)
    if len(rows) == 0:
        raise UserError(f"{data}: holds no rows")
    candidates = [
        Candidate(
            id=image_id(rows.name, str(row)),
            path=rows.source,
            member=str(row),
            name=f"{rows.name}, row {row}",
            image=functools.partial(rows.image_bytes, row),
            text=functools.partial(rows.text, row),
        )
        for row in range(len(rows))
    ]
    return Listing(Path.cwd(), candidates, [])


def _relative(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.as_posix()  # reached through a link out of the data's folder
