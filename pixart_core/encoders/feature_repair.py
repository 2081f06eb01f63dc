"""`pixart extract-features --verify [--repair]`: find damaged shards, and encode only them again.

A repair reads the card for what was done, and the store's plan for what belongs into the damaged shards.
While it works, `repair.json` keeps the card: a killed repair comes again and goes on.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixart_core.artifacts.card import CARD, Card, read_card
from pixart_core.artifacts.feature_check import Damage, discard, refuse_irreplaceable, verify
from pixart_core.artifacts.feature_index import read_index
from pixart_core.artifacts.feature_plan import KINDS, FeaturePlan, PlannedShard
from pixart_core.artifacts.feature_writer import FeatureWriter
from pixart_core.artifacts.lock import only_launch
from pixart_core.artifacts.publish import write_json
from pixart_core.encoders.ahead import map_ahead
from pixart_core.encoders.caption_texts import CaptionTexts
from pixart_core.encoders.device import choose_device
from pixart_core.encoders.extract import encode_missing, open_plan
from pixart_core.encoders.feature_data import TrainingData, bucket_tables
from pixart_core.encoders.feature_encode import shard_texts
from pixart_core.encoders.feature_import import read_import, store_import
from pixart_core.encoders.feature_parts import Encoders, load_encoders
from pixart_core.encoders.feature_replan import beside, replan, restore_plan
from pixart_core.encoders.moved_data import manifest_of_store
from pixart_core.errors import PixartError, UserError
from pixart_core.launch import Processes
from pixart_core.progress import Progress
from pixart_core.recipe.features import ExtractFeaturesStep, ImportFeaturesStep

REPAIR = "repair.json"


@dataclasses.dataclass(frozen=True)
class RepairOptions:
    """Where things lie now, if not where they lay; and where to compute."""

    data: str | None = None
    captions: str | None = None
    vae: str | None = None
    text_encoder: str | None = None
    device: str | None = None


def verify_features(folder: Path, progress: Progress) -> dict[str, Any]:
    """Look at every sample of the store in `folder`.

    Returns:
        store, sound (nothing is damaged, no repair is waiting), complete (everything is there), and damaged:
        {"shard", "samples" (image ids, or numbers of captions), "reason"}.

    Raises:
        UserError: no store.
    """
    return _told(folder, verify(folder, progress), progress)


def repair_features(folder: Path, options: RepairOptions, progress: Progress) -> dict[str, Any]:
    """Find the damaged shards of the store in `folder` and make them, and nothing else, again.

    Returns:
        what `verify_features` does, with repaired (names of files) and different (those whose bytes are not
        as before: other hardware or library versions).

    Raises:
        UserError: the store cannot be repaired: its data, captions or encoders are gone or have changed.
            What is there stays as it is.
    """
    with only_launch(folder):
        damages = verify(folder, progress)
        told = _told(folder, damages, progress) | {"repaired": [], "different": []}
        if not damages and not (folder / REPAIR).exists():
            return told
        card = _card(folder)
        if card is None:
            discard(folder, damages)
            progress.say(f"{folder} is unfinished: the command that began it makes the damaged shards again")
            return told
        # Nothing is given up that cannot be made again.
        refuse_irreplaceable(folder, damages)
        work = _work(folder, card, options, {damage.shard for damage in damages})
        with beside(folder) as scratch:
            work.prepare(scratch, progress)
            write_json(folder / REPAIR, dataclasses.asdict(card))
            before = dict(read_index(folder).entries)
            discard(folder, damages)
            restore_plan(scratch, folder, work.lost)
        work.run(progress)
        (folder / REPAIR).unlink()
    return told | _compared(before, dict(read_index(folder).entries), work.names, progress)


def _compared(
    before: dict[str, Any], after: dict[str, Any], names: Sequence[str], progress: Progress
) -> dict[str, Any]:
    known = [name for name in names if name in before and name in after]
    different = [name for name in known if before[name]["xxh3_128"] != after[name]["xxh3_128"]]
    if different:
        progress.say(
            f"{len(different)} of {len(names)} shards have other bytes than before, e.g. {different[0]}: "
            "made on other hardware, by other versions, or of pictures that changed"
        )
    return {"sound": True, "complete": True, "repaired": list(names), "different": different}


class _Encode:
    """Encodes what is missing of a store from its data."""

    def __init__(self, folder: Path, card: Card, options: RepairOptions, lost: set[str]) -> None:
        self.folder, self.card, self.options, self.lost = folder, card, options, lost
        self.sources = dict(card.details.get("sources") or {})
        self.missing: list[PlannedShard] = []
        self.names: list[str] = []

    def prepare(self, scratch: Path, progress: Progress) -> None:
        """Load the encoders and see that the data are those of before.

        Raises:
            UserError: something is gone or has changed.
        """
        lost_plans = sorted(name for name in self.lost if name.startswith("plan-"))
        if lost_plans:
            self._open_data()
            self.plan = replan(scratch, self.folder, self.lost, self._plan_in)
        else:
            self.plan = FeaturePlan.load(self.folder)
        there = read_index(self.folder).entries.keys() - self.lost
        self.missing = [s for kind in KINDS for s in self.plan.shards(kind) if s.name not in there]
        self.names = lost_plans + [shard.name for shard in self.missing]
        if not self.missing:
            return
        self._open_data()
        self.step = self._step(sorted({shard.kind for shard in self.missing}))
        self.encoders = load_encoders(self.step, choose_device(self.options.device))
        self._refuse_other_encoders(self.encoders)
        try:
            self._refuse_other_data()
        except KeyError as error:
            raise UserError(
                f"{self.folder}: its manifest lacks the image {error.args[0]}, so it is of other data; run "
                "the command that made the store again, it makes only what is missing"
            ) from error

    def _open_data(self) -> None:
        manifest = manifest_of_store(self.folder, self.sources["data"], self.options.data)
        captions = self.options.captions or self.sources.get("captions")
        if captions is not None and not Path(captions).is_dir():
            raise UserError(f"{captions}: the captions of {self.folder} are not there; give --captions")
        texts = None if captions is None else CaptionTexts(Path(captions))
        self.data = TrainingData(manifest, texts, self.card.options.get("split", "train"))

    def _plan_in(self, folder: Path) -> FeaturePlan:
        step = self._step(())
        tables = bucket_tables(step)
        plan = open_plan(step, folder, tables)
        plan.extend(self.data.planned(tables))
        return plan

    def _refuse_other_data(self) -> None:
        images = [self.plan.ids(shard.rows) for shard in self.missing if shard.kind == "image"]
        # The healthy samples of a damaged shard are given up for these, so each is looked at before.
        for _ in map_ahead(self.data.picture, dict.fromkeys(itertools.chain.from_iterable(images))):
            pass
        texts = [shard for shard in self.missing if shard.kind == "text"]
        for shard, captions_now in shard_texts(self.plan, texts, self.data.caption):
            if (self.plan.caption_numbers(captions_now) != np.asarray(shard.rows)).any():
                raise UserError(f"{self.folder}: captions of {shard.name} have changed since then")

    def run(self, progress: Progress) -> None:
        """Make the missing shards and write the card that was there."""
        storage = self.plan.settings["storage"]
        plan = FeaturePlan.load(self.folder)
        writer = FeatureWriter(self.folder, plan, storage, first=True)
        if self.missing:
            encode_missing(self.step, self.encoders, self.data, plan, writer, Processes(), progress)
        if not writer.finish(self.card):
            raise PixartError(f"{self.folder}: shards are still missing; repair it again")

    def _refuse_other_encoders(self, encoders: Encoders) -> None:
        for part, now in encoders.described.items():
            name = "vae" if part == "image" else "text_encoder"
            before = self.card.details[name]
            if now["hash"] != before["hash"]:
                raise UserError(
                    f"{self.folder} was made with {before['name']} (weights {before['hash']}), "
                    f"{now['source']} has the weights {now['hash']}; give --{name.replace('_', '-')}"
                )

    def _step(self, kinds: Sequence[str]) -> ExtractFeaturesStep:
        """The options of the card, for these parts alone."""
        card, options = self.card, self.options
        changes = {
            "data": options.data or self.sources["data"],
            "captions": options.captions or self.sources.get("captions"),
            "vae": options.vae or card.details["vae"]["source"],
            "text_encoder": options.text_encoder or card.details["text_encoder"]["source"],
            "device": options.device or card.options.get("device"),
            "only": kinds[0] if len(kinds) == 1 else None,
        }
        return ExtractFeaturesStep.model_validate(dict(card.options) | changes)


class _ImportAgain:
    """Imports what is missing once more."""

    def __init__(self, folder: Path, card: Card, options: RepairOptions, lost: set[str]) -> None:
        self.folder, self.names, self.lost = folder, sorted(lost), lost
        source = options.data or card.details["sources"]["import"]
        self.step = ImportFeaturesStep.model_validate(dict(card.options) | {"source": source})

    def prepare(self, scratch: Path, progress: Progress) -> None:
        """Read what was imported, and see that it gives the same store.

        Raises:
            UserError: it is gone, damaged or has changed.
        """
        self.found = read_import(self.step, progress)
        replan(scratch, self.folder, self.lost, self.found.plan)

    def run(self, progress: Progress) -> None:
        """Make the missing shards."""
        store_import(self.found, self.folder, progress)


def _work(folder: Path, card: Card, options: RepairOptions, lost: set[str]) -> _Encode | _ImportAgain:
    sources = card.details.get("sources") or {}
    if "import" in sources:
        return _ImportAgain(folder, card, options, lost)
    if "data" not in sources:
        raise UserError(f"{folder}: its card does not say where its data lay; it cannot be repaired")
    return _Encode(folder, card, options, lost)


def _told(folder: Path, damages: Sequence[Damage], progress: Progress) -> dict[str, Any]:
    for damage in damages:
        progress.say(str(damage))
    found = [{"shard": d.shard, "samples": list(d.samples), "reason": d.reason} for d in damages]
    missing = 0 if damages else _count_missing(folder)
    waiting = (folder / REPAIR).exists()
    if missing:
        again = (
            "--verify --repair was interrupted, run it" if waiting else "run the command that began the store"
        )
        progress.say(f"{missing} shards are missing: {again} again")
    complete = not damages and not missing and (folder / CARD).exists()
    sound = not damages and not waiting
    return {"store": str(folder), "sound": sound, "complete": complete, "damaged": found}


def _count_missing(folder: Path) -> int:
    plan, there = FeaturePlan.load(folder), read_index(folder).entries
    return sum(shard.name not in there for kind in KINDS for shard in plan.shards(kind))


def _card(folder: Path) -> Card | None:
    """The card, or what a killed repair kept of it; None: the store was never finished."""
    if read_card(folder) is not None:
        return Card.read(folder, "features")
    try:
        kept = json.loads((folder / REPAIR).read_text())
        kept.pop("fingerprint", None)
        return Card(**kept)
    except FileNotFoundError:
        if not (folder / CARD).exists():
            return None
        raise UserError(
            f"{folder / CARD} is damaged; run the command that made the store again, it encodes only what is "
            "missing"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / REPAIR} is damaged; delete it and run that command again") from error
