"""Which images and captions go into a feature store, and the bucket of each."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from pixart_core.artifacts.feature_plan import Bucket, PlannedImage
from pixart_core.artifacts.manifest import ImageRecord, Manifest
from pixart_core.data.buckets import assign_bucket, bucket_table
from pixart_core.data.images import ImageReader
from pixart_core.data.scan import manifest_for
from pixart_core.encoders.caption_match import compare_pictures
from pixart_core.encoders.caption_texts import CaptionTexts, IdLookup
from pixart_core.encoders.vae import read_vae_downsampling
from pixart_core.errors import UserError
from pixart_core.progress import Progress
from pixart_core.recipe.features import ExtractFeaturesStep

Tables = Mapping[int, tuple[Bucket, ...]]  # resolution: its buckets
_HELD_RECORDS = 2**17


class TrainingData:
    """The images of a run, those of one split; a few bytes of memory each, however many there are.

    Attributes:
        count: images.
        excluded: images that are left out because their caption is marked so.
        label_names: classes of stage 1.
    """

    def __init__(self, manifest: Manifest, captions: CaptionTexts | None, split: str = "train") -> None:
        """Raises: UserError: an image has no caption in `captions`, or all are excluded."""
        self.label_names = manifest.label_names
        self._captions = captions
        self._reader = ImageReader(manifest.folder)
        records = manifest.split(split)
        # Parsed once where that fits into memory easily.
        self._records = list(records) if len(records) <= _HELD_RECORDS else records
        ids = np.fromiter((int(record.id, 16) for record in self._records), np.uint64, len(records))
        kept = np.ones(len(ids), bool) if captions is None else captions.usable(ids, self._records)
        self.excluded = int((~kept).sum())
        self._kept = np.flatnonzero(kept)
        self.count = len(self._kept)
        self._lookup = IdLookup(ids)

    def record(self, name: str) -> ImageRecord:
        """The image with the id `name`; KeyError: there is none."""
        return self._records[self._lookup[name]]

    def caption(self, name: str) -> str:
        """Its caption without surrounding blanks, "" if it has none."""
        return self._caption(self.record(name))

    def picture(self, name: str) -> Image.Image:
        """Its picture, RGB.

        Raises:
            UserError: it is gone, or not the one that was scanned.
        """
        record = self.record(name)
        picture = self._reader.read(record)
        if picture.size != (record.width, record.height):
            raise UserError(
                f"{self.place(name)} has {picture.width}x{picture.height} pixels, it had {record.width}x"
                f"{record.height} when it was scanned; restore it, or extract into another output"
            )
        return picture

    def place(self, name: str) -> str:
        """Where it lies, for messages."""
        record = self.record(name)
        return record.path if record.member is None else f"{record.path}, {record.member}"

    def refuse_other_pictures(self, captions: Path, progress: Progress) -> None:
        """Look whether `captions` are of other data with the same names; warn where that only seems so.

        Raises:
            UserError: they were made of other files, by the digests of both manifests.
        """
        match = compare_pictures(captions, (self._records[int(n)] for n in self._kept))
        if match.other_files:
            raise UserError(
                f"{match.other_files} of {match.common} images are not those that {captions} describes, e.g. "
                f"{self.place(match.example)}; caption these, or, if they are copies that the captions still "
                f"fit, move {match.folder} elsewhere"
            )
        if match.other_shapes:
            progress.say(
                f"{match.other_shapes} of {match.common} images have another shape than those that "
                f"{captions} describes, e.g. {self.place(match.example)}: unless they were cropped since, "
                "these are captions of other data"
            )

    def planned(self, tables: Tables) -> Iterator[PlannedImage]:
        """The images with their buckets, in the order of the manifest."""
        nearest: dict[tuple[int, int], tuple[Bucket, ...]] = {}
        for number in self._kept:
            record = self._records[int(number)]
            size = (record.height, record.width)
            if size not in nearest:
                nearest[size] = tuple(assign_bucket(*size, table) for table in tables.values())
            caption, buckets = self._caption(record), nearest[size]
            yield PlannedImage(record.id, caption, record.label, *size, buckets, record.digest)

    def _caption(self, record: ImageRecord) -> str:
        text = record.caption if self._captions is None else self._captions.text(record.id)
        return (text or "").strip()


def training_data(step: ExtractFeaturesStep, folder: Path, progress: Progress) -> TrainingData:
    """The images of `step.data` that are trained on (or held out, by `step.split`), with their captions.

    Args:
        folder: where the scan of data that are no manifest is kept.

    Raises:
        UserError: the data or captions cannot be used, or none is left.
    """
    manifest = manifest_for(step, folder, progress)
    if not len(manifest.split(step.split)):
        why = (
            "left for training (all are held out)" if step.split == "train" else "held out (heldout_fraction)"
        )
        raise UserError(f"{step.data}: no images are {why}")
    captions = None if step.captions is None else CaptionTexts(Path(str(step.captions)))
    return TrainingData(manifest, captions, step.split)


def bucket_tables(step: ExtractFeaturesStep) -> Tables:
    """The buckets of each resolution of `step`, in pixels.

    The same images share a bucket at every resolution, so that each is decoded once.

    Raises:
        UserError: a size that the VAE cannot take, or a table that is not known.
    """
    factor = _side_factor(step)
    first = step.all_resolutions[0]
    tables: dict[int, tuple[Bucket, ...]] = {}
    for resolution in step.all_resolutions:
        if isinstance(step.aspect_buckets, str):
            table = bucket_table(step.aspect_buckets, resolution)
        else:
            table = tuple(
                (_scaled(height, resolution, first), _scaled(width, resolution, first))
                for height, width in bucket_table(step.aspect_buckets, first)
            )
        for height, width in table:
            if height % factor or width % factor:
                raise UserError(
                    f"bucket {height}x{width}: the VAE needs sides that are multiples of {factor}"
                )
        tables[resolution] = table
    return tables


def _side_factor(step: ExtractFeaturesStep) -> int:
    """What sides must be multiples of. Without a VAE at hand, text can be made, and the image part asks."""
    try:
        return read_vae_downsampling(str(step.vae))
    except UserError:
        if step.only != "text":
            raise
        return 1


def _scaled(side: int, resolution: int, first: int) -> int:
    if side * resolution % first:
        raise UserError(
            f"aspect_buckets: {side} px at resolution {first} is no whole number of pixels at {resolution}"
        )
    return side * resolution // first
