"""Keeping benchmarks out of training: images and captions of a given list are left out of a manifest."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pixart_core.artifacts.card import read_card
from pixart_core.artifacts.manifest import ImageRecord, image_id, read_manifest
from pixart_core.artifacts.patterns import expand_pattern
from pixart_core.data.candidates import Candidate, LazyCandidates, Listing, Opened, Part, Size, key_of
from pixart_core.data.folders import kind_of
from pixart_core.data.gates import Gate, Verdict
from pixart_core.data.images import ImageReader
from pixart_core.data.inspection import Fact, inspect_parts
from pixart_core.data.perceptual import NearIndex, unpack_looks
from pixart_core.data.scan_log import Inspected, ScanLog
from pixart_core.data.sources import list_images
from pixart_core.errors import UserError
from pixart_core.progress import Progress

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_ID = re.compile(r"[0-9a-f]{16}")


def leakage_gates(
    exclude: str, distance: int, log: ScanLog, progress: Progress
) -> tuple[list[Gate], list[str]]:
    """The gates that leave out what is in `exclude`, and the log's keys of its images.

    Args:
        exclude: text file(s) with a caption, an id of this manifest (16 hex digits) or a SHA-256 sum of an
            image file a line; or images: any source that `data` may be.
        distance: of perceptual hashes, see `NearIndex`.

    Raises:
        UserError: it cannot be read, or holds nothing.
    """
    texts = _text_files(exclude)
    if texts:
        return _text_gates(exclude, texts), []
    return _image_gates(exclude, distance, log, progress)


def normalised(caption: str) -> str:
    """A caption's letters and digits, in one case, with single blanks."""
    text = unicodedata.normalize("NFKC", caption).casefold()
    return " ".join(re.sub(r"[\W_]+", " ", text).split())


class _ListGate:
    """Images with a property that is in a list; its entry is the detail."""

    names_image = False

    def __init__(
        self, what: str, entries: dict[str, str], key: Callable[[Inspected], str | None], *needs: Fact
    ) -> None:
        self.option = "exclude"
        self.reason = f"leakage: {what}"
        self.needs = frozenset(needs)
        self._names = list(entries.values())
        self._places = {key: place for place, key in enumerate(entries)}
        self._key = key

    def judge(self, images: Sequence[Inspected], numbers: Sequence[int]) -> list[Verdict]:
        return [self._places.get(self._key(image) or "") for image in images]

    def detail(self, image: Inspected, verdict: int) -> str:
        return self._names[verdict]

    def settle(self, end: int) -> None: ...


class _LookGate:
    """Images that look like one in a list."""

    option = "exclude"
    reason = "leakage: looks like an image of the list"
    needs: frozenset[Fact] = frozenset(("look",))
    names_image = False

    def __init__(self, looks: dict[str, str], distance: int) -> None:
        self._names = list(looks.values())
        self._index = NearIndex(distance)
        if looks:
            self._index.add(unpack_looks([bytes.fromhex(look) for look in looks]), np.arange(len(looks)))

    def judge(self, images: Sequence[Inspected], numbers: Sequence[int]) -> list[Verdict]:
        verdicts: list[Verdict] = [None] * len(images)
        places = [place for place, image in enumerate(images) if image.look]
        if places:
            found = self._index.find(unpack_looks([bytes.fromhex(images[p].look or "") for p in places]))
            for place, number in zip(places, found, strict=True):
                verdicts[place] = int(number) if number >= 0 else None
        return verdicts

    def detail(self, image: Inspected, verdict: int) -> str:
        return self._names[verdict]

    def settle(self, end: int) -> None: ...


def _text_files(exclude: str) -> list[Path]:
    """The text files that `exclude` is, [] if it is a source of images."""
    if exclude.startswith("hf:") or Path(exclude).is_dir():
        return []
    files = [Path(exclude)] if Path(exclude).is_file() else expand_pattern(exclude)
    if not files:
        raise UserError(f"exclude: {exclude}: no such file or folder")
    return [] if any(kind_of(file.name) for file in files) else files


def _text_gates(exclude: str, files: Sequence[Path]) -> list[Gate]:
    ids: dict[str, str] = {}
    sums: dict[str, str] = {}
    captions: dict[str, str] = {}
    for file in files:
        for line in _lines(file):
            if _SHA256.fullmatch(line):
                sums[line.lower()] = line.lower()
            elif _ID.fullmatch(line):
                ids[line] = line
            elif normalised(line):
                captions.setdefault(normalised(line), line)
    gates: list[Gate] = []
    if ids:
        gates.append(_ListGate("id in the list", ids, lambda image: image.id))
    if captions:
        gates.append(_caption_gate(captions))
    if sums:
        gates.append(_ListGate("file in the list", sums, lambda image: image.bytes_hash, "bytes"))
    if not gates:
        raise UserError(f"exclude: {exclude} holds no captions, ids or SHA-256 sums")
    return gates


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"exclude: {file} cannot be read as text ({error})") from error


def _caption_gate(captions: dict[str, str]) -> Gate:
    return _ListGate(
        "caption in the list", captions, lambda image: normalised(image.caption) if image.caption else None
    )


def _image_gates(
    exclude: str, distance: int, log: ScanLog, progress: Progress
) -> tuple[list[Gate], list[str]]:
    listing = _listing(exclude)
    captions: dict[str, str] = {}
    pixels: dict[str, str] = {}
    looks: dict[str, str] = {}
    unusable, keys = 0, []
    progress.start("exclude", None)
    for chunk in inspect_parts(listing.parts(), log, facts=frozenset(("pixels", "look"))):
        progress.advance("exclude", len(chunk.images))
        keys += [chunk.key] if chunk.key else []
        for image in chunk.images:
            if image.reason is not None:
                unusable += 1
                continue
            assert image.pixels_hash is not None
            pixels.setdefault(image.pixels_hash, image.name)
            if image.look:
                looks.setdefault(image.look, image.name)
            if image.caption and normalised(image.caption):
                captions.setdefault(normalised(image.caption), image.name)
    progress.finish("exclude")
    if not pixels:
        raise UserError(f"exclude: {exclude} holds no images that can be read")
    if unusable:
        progress.say(f"exclude: {unusable} images of {exclude} cannot be read; they cannot be recognised")
    same = _ListGate("same pixels as an image of the list", pixels, lambda image: image.pixels_hash, "pixels")
    gates: list[Gate] = [same, _LookGate(looks, distance)]
    return ([_caption_gate(captions), *gates] if captions else gates), keys


def _listing(exclude: str) -> Listing:
    folder = Path(exclude)
    if read_card(folder) is None:
        return list_images(exclude)
    manifest = read_manifest(folder)
    reader = ImageReader(manifest.folder)

    def candidate(number: int) -> Candidate:
        record: ImageRecord = manifest.records[number]
        name = record.path if record.member is None else f"{record.path}/{record.member}"
        return Candidate(
            image_id(record.path, record.member), record.path, record.member, name,
            lambda: reader.read_bytes(record), lambda: (record.caption, {}),
        )  # fmt: skip

    def parts() -> Iterator[Part]:
        key = key_of("manifest", (read_card(manifest.folder) or {}).get("fingerprint"))
        count = len(manifest.records)
        yield Part(exclude, key, lambda: Opened(LazyCandidates(range(count), candidate)))

    return Listing(manifest.folder, parts, lambda: Size(len(manifest.records)))
