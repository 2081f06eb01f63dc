"""One scan: decide on every image in order, then tell what was decided."""

import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pixart_core.artifacts.image_records import json_line
from pixart_core.artifacts.manifest import ImageRecord
from pixart_core.artifacts.publish import staged_file
from pixart_core.data.candidates import Listing, Part, Size
from pixart_core.data.gates import Gate, TokenGate, duplicate_gates, size_gates
from pixart_core.data.inspection import Fact, inspect_parts
from pixart_core.data.scan_log import Inspected, ScanLog
from pixart_core.data.selection import Row, Selection, describe, label_of
from pixart_core.data.sources import nothing_found
from pixart_core.errors import UserError
from pixart_core.progress import Progress
from pixart_core.recipe.data import DataOptions

_EARLY = 10_000  # images after which too many unusable ones end a scan before its end


class Scan:
    """One scan: `run` decides, then `rows` gives what was decided."""

    def __init__(self, options: DataOptions, listing: Listing, log: ScanLog) -> None:
        self._options = options
        self.listing = listing
        self._log = log
        self._excluded: list[str] = []
        self._tokens: TokenGate | None = None
        self.labels: tuple[str, ...] = ()

    def run(self, progress: Progress, ledger: Path | None = None) -> None:
        """Look at everything and decide.

        Args:
            ledger: if too many images cannot be used, all of them are listed in this file.

        Raises:
            UserError: see `scan_images`.
        """
        options = self._options
        gates = self._gates(progress)
        self._selection = selection = Selection(gates, options.limit, options.label_key)
        facts: frozenset[Fact] = frozenset().union(*(gate.needs for gate in gates))
        size = Size(options.limit) if options.limit else self.listing.size()
        progress.start("scan", size.images)
        chunks = inspect_parts(self._counted_parts(), self._log, facts=facts, wanted=selection.wanted)
        self._whole = True
        with contextlib.closing(chunks):
            for chunk in chunks:
                before = selection.images if options.limit else selection.seen
                selection.take(chunk)
                done = (selection.images if options.limit else selection.seen) - before
                note = f"archive {self._archives} of {size.archives}" if size.archives > 1 else ""
                progress.advance("scan", done, note)
                if selection.full or self._too_bad(many=True):
                    self._whole = False
                    break
        progress.finish("scan")
        self._refuse_unusable(ledger)
        self._refuse_options()
        self.labels = label_names(selection.values)
        self._report(progress)

    def _counted_parts(self) -> Iterator[Part]:
        self._archives = 0
        for part in self.listing.parts():
            self._archives += part.archive
            yield part

    @property
    def left_out(self) -> int:
        """Images that cannot be used or that filters left out."""
        return self._selection.unusable + self._selection.left_out

    def rows(self) -> Iterator[ImageRecord | Row]:
        """The record of each kept image and the ledger's row of each other, in order."""
        options = self._options
        root = str(self.listing.root)
        index = {name: number for number, name in enumerate(self.labels)}
        for row in self._selection.rows(self._log):
            if isinstance(row, dict):
                yield row
                continue
            image = row[1]
            label = None if options.label_key is None else label_of(image.meta.get(options.label_key))
            heldout = _is_heldout(image, options.heldout_fraction, options.heldout_keys)
            yield ImageRecord(
                image.id, _absolute(image.path, root), image.member, image.width, image.height,
                image.caption, None if label is None else index[label],
                "heldout" if heldout else "train", image.meta, image.offset, image.length,
                image.digest,
            )  # fmt: skip

    def write_flags(self, path: Path) -> None:
        """Write what was kept but flagged, if the tokenizer was asked."""
        if self._tokens is None:
            path.unlink(missing_ok=True)
            return
        flags = self._selection.flags()
        flagged = next(flags, None)
        with staged_file(path) as partial, partial.open("w", encoding="utf-8") as file:
            for row in self._selection.rows(self._log) if flagged else ():
                if not isinstance(row, dict) and flagged is not None and row[0] == flagged[0]:
                    image, flag = row[1], f"caption of {flagged[1]} tokens"
                    file.write(json_line({"id": image.id, "path": image.name, "flag": flag}))
                    flagged = next(flags, None)

    def keys(self) -> Iterator[str]:
        """Keys of the log to keep, in order, each once: those that were used.

        After a limited scan the others too: a whole one may come next, or have been before.
        """
        others = sorted(self._log.keys()) if self._options.limit else ()
        return iter(dict.fromkeys(itertools.chain(self._excluded, self._selection.keys_of_chunks(), others)))

    def details(self) -> dict[str, Any]:
        """What the card says."""
        selection = self._selection
        details = {
            "images": selection.images,
            "captions": selection.captions,
            "dropped": selection.unusable,
            "reasons": {reason: count.images for reason, count in sorted(selection.broken.items())},
            "filtered": selection.left_out,
            "filters": {reason: count.images for reason, count in sorted(selection.filtered.items())},
            "label_names": list(self.labels),
        }
        if self._tokens is not None:
            counts = {"captions": self._tokens.captions, "longer": len(self._tokens.long)}
            details["tokens"] = {"max_tokens": self._options.filters.max_tokens, **counts}
        return details

    def _gates(self, progress: Progress) -> list[Gate]:
        options = self._options
        filters = options.filters
        gates = size_gates(filters)
        if options.exclude is not None:
            from pixart_core.data.leakage import leakage_gates

            found, self._excluded = leakage_gates(
                str(options.exclude), filters.leakage_distance, self._log, progress
            )
            gates += found
        if options.tokenizer is not None:
            from pixart_core.data.token_lengths import load_token_lengths

            lengths = load_token_lengths(str(options.tokenizer), filters.max_tokens)
            drop = filters.truncated == "drop"
            self._tokens = TokenGate(lengths.of, lengths.max_tokens, drop=drop)
            gates.append(self._tokens)
        return gates + duplicate_gates(filters)

    def _too_bad(self, *, many: bool) -> bool:
        """Judged after many images and at the end; the few that were enough for a limit tell nothing."""
        selection = self._selection
        judged = selection.seen >= _EARLY if many else not selection.full
        return judged and selection.unusable > self._options.max_bad_fraction * selection.seen

    def _refuse_unusable(self, ledger: Path | None) -> None:
        options, selection = self._options, self._selection
        seen = f"{selection.seen} images" if self._whole else f"the first {selection.seen} images"
        if not selection.seen:
            raise nothing_found(str(options.data))
        bad = self._too_bad(many=False) or self._too_bad(many=True)
        if bad or not selection.images:
            listed = "" if ledger is None else f"; all of them are in {ledger}"
            if ledger is not None:
                with staged_file(ledger) as partial, partial.open("w", encoding="utf-8") as file:
                    rows = selection.rows(self._log)
                    file.writelines(json_line(row) for row in rows if isinstance(row, dict))
        if not selection.images and not selection.left_out:
            raise UserError(
                f"{options.data}: none of {seen} can be used: {describe(selection.broken)}{listed}"
            )
        if bad:
            raise UserError(
                f"{options.data}: {selection.unusable} of {seen} cannot be used: {describe(selection.broken)}"
                f"{listed}; mend them or raise max_bad_fraction ({options.max_bad_fraction:g})"
            )
        if not selection.images:
            raise UserError(
                f"{options.data}: the filters leave none of {seen}: {describe(selection.filtered)}{listed}"
            )

    def _refuse_options(self) -> None:
        options, selection = self._options, self._selection
        if self._tokens is not None and self._long_share() > options.filters.max_truncated_fraction:
            raise UserError(f"{options.data}: {self._long_captions()}, more than max_truncated_fraction")
        known = ", ".join(sorted(selection.keys)) or "no JSON"
        for key in options.heldout_keys:
            if key not in selection.keys:
                raise UserError(f"heldout_keys: no image has {key!r} in its JSON (there is: {known})")
        if options.label_key is not None and selection.values <= {None}:
            key = options.label_key
            raise UserError(f"{options.data}: no image has label_key {key!r} in its JSON (there is: {known})")

    def _long_share(self) -> float:
        assert self._tokens is not None
        return len(self._tokens.long) / max(1, self._tokens.captions)

    def _long_captions(self) -> str:
        assert self._tokens is not None
        return (
            f"{len(self._tokens.long)} of {self._tokens.captions} captions ({self._long_share():.2%}) are "
            f"longer than {self._options.filters.max_tokens} tokens"
        )

    def _report(self, progress: Progress) -> None:
        selection = self._selection
        if selection.broken:
            progress.say(f"left out {selection.unusable} of {selection.seen}: {describe(selection.broken)}")
        if selection.filtered:
            progress.say(
                f"filtered {selection.left_out} of {selection.seen - selection.unusable}: "
                f"{describe(selection.filtered)}"
            )
        if self._tokens is not None:
            progress.say(self._long_captions())


def _is_heldout(image: Inspected, fraction: float, keys: Sequence[str]) -> bool:
    """By a hash of the id, or of the values of `keys`: stable when images are added."""
    text = "\x1f".join(str(image.meta.get(key)) for key in keys) if keys else image.id
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=b"heldout")
    return int.from_bytes(digest.digest(), "big") < fraction * 2**64


def _absolute(path: str, root: str) -> str:
    return path if path.startswith(("hf:", "/")) else f"{root}/{path}"


def label_names(values: "set[str | None]") -> tuple[str, ...]:
    """The classes in order: numbers in the order of numbers, names in that of names."""
    present = (value for value in values if value is not None)
    return tuple(
        sorted(present, key=lambda value: (not value.isdecimal(), value.isdecimal() and int(value), value))
    )
