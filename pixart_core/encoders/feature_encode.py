"""Encode the planned shards of a feature store: captions in batches of one length, pictures decoded once.

A shard is computed from its planned rows in fixed batches, each on one core of a CPU: its bytes depend
neither on the number of threads or processes nor on what was made before it.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from PIL import Image
from torch import Tensor

from pixart_core.artifacts.feature_plan import Bucket, FeaturePlan, PlannedShard
from pixart_core.artifacts.feature_writer import FeatureWriter, OpenText
from pixart_core.data.images import resize_and_crop
from pixart_core.encoders.ahead import map_ahead, single_threaded_torch
from pixart_core.encoders.text import TextBatch, TextEncoder
from pixart_core.encoders.vae import encode_moments
from pixart_core.errors import UserError
from pixart_core.progress import Progress

# Pixels that one core encodes at a time: an activation of Stable Diffusion's VAE takes 128 MB then.
_CPU_PIXELS = 2**18

Moments = dict[str, Tensor]
Group = Sequence[PlannedShard]  # shards of the same images at several resolutions


def encode_text_shards(
    encoder: TextEncoder,
    shards: Sequence[PlannedShard],
    plan: FeaturePlan,
    caption_of: Callable[[str], str],
    writer: FeatureWriter,
    progress: Progress,
    *,
    max_tokens: int,
    batch_size: int,
) -> None:
    """Make text `shards`.

    Args:
        caption_of: the caption of an image id.

    Raises:
        UserError: the encoder computes values that are not finite.
        PixartError: the disk is full; published shards are kept.
    """
    if not shards:
        return
    progress.start("captions", sum(len(shard.rows) for shard in shards))
    batches = (
        (shard, batch)
        for shard, texts in shard_texts(plan, shards, caption_of)
        for batch in encoder.batches(texts, max_tokens, batch_size)
    )
    # The next batches are encoded while one is packed, and while a shard is written.
    with contextlib.closing(_encoded_texts(encoder, batches)) as found:
        for _, of_shard in itertools.groupby(found, lambda item: item[0].name):
            opened: OpenText | None = None
            for shard, batch, states in of_shard:
                opened = opened or writer.open_text(shard)
                opened.add(batch.numbers, states)
                progress.advance("captions", len(states))
            assert opened is not None  # no group is empty
            opened.publish()
    progress.finish("captions")


def _encoded_texts(
    encoder: TextEncoder, batches: Iterable[tuple[PlannedShard, TextBatch]]
) -> Generator[tuple[PlannedShard, TextBatch, list[Tensor]], None, None]:
    """Each of `batches`, in order, with its states; a few are held in memory at a time."""

    def encode(item: tuple[PlannedShard, TextBatch]) -> tuple[PlannedShard, TextBatch, list[Tensor]]:
        return *item, encoder.encode_batch(item[1])

    if encoder.model.device.type == "cpu":
        with single_threaded_torch():
            yield from map_ahead(encode, batches)
    else:
        yield from map_ahead(encode, batches, 1)  # one thread keeps a GPU busy


def shard_texts(
    plan: FeaturePlan, shards: Sequence[PlannedShard], caption_of: Callable[[str], str]
) -> Iterator[tuple[PlannedShard, list[str]]]:
    """Each of text `shards` with its captions: those of the images that use them first."""
    if not shards:
        return
    firsts = plan.first_uses(np.concatenate([np.asarray(shard.rows) for shard in shards]))
    start = 0
    for shard in shards:
        rows = firsts[start : start + len(shard.rows)]
        start += len(rows)
        names = iter(plan.ids(rows[rows >= 0]))
        yield shard, ["" if row < 0 else caption_of(next(names)) for row in rows]


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Images that are decoded and encoded together."""

    ids: Sequence[str]
    buckets: Sequence[Bucket]


@dataclasses.dataclass(frozen=True)
class ImageEncoding:
    """How pictures become moments.

    Attributes:
        read: the picture of an image id.
        place: where that picture lies, for messages.
        name: of the VAE, for messages.
        flip: encode the mirrored pictures too.
    """

    vae: AutoencoderKL
    read: Callable[[str], Image.Image]
    place: Callable[[str], str]
    name: str
    batch_size: int
    flip: bool

    def encode_shards(
        self, groups: Sequence[Group], plan: FeaturePlan, writer: FeatureWriter, progress: Progress
    ) -> None:
        """Make the image shards of `groups`; the pictures of a group are decoded once.

        Raises:
            UserError: a picture is gone, or the VAE computes values that are not finite.
            PixartError: the disk is full; published shards are kept.
        """
        if not groups:
            return
        progress.start("images", sum(len(group[0].rows) for group in groups))
        # Decoding goes on while a shard is written.
        pieces = itertools.chain.from_iterable(self._pieces(plan, group) for group in groups)
        with deterministic_cudnn(), contextlib.closing(self._encoded(pieces)) as found:
            for group in groups:
                self._make(group, plan, found, writer, progress)
        progress.finish("images")

    def _make(
        self,
        group: Group,
        plan: FeaturePlan,
        found: Iterator[Mapping[Bucket | None, Moments]],
        writer: FeatureWriter,
        progress: Progress,
    ) -> None:
        opened = {shard.bucket: writer.open_images(shard) for shard in group}
        for piece in self._pieces(plan, group):
            moments = next(found)
            self._refuse_not_finite(piece.ids, moments.values())
            for bucket, shard in opened.items():
                shard.add(piece.ids, moments[bucket])
            progress.advance("images", len(piece.ids))
        for shard in opened.values():
            shard.publish()

    def _pieces(self, plan: FeaturePlan, group: Group) -> list[_Piece]:
        ids = plan.ids(group[0].rows)
        buckets = [shard.bucket for shard in group if shard.bucket is not None]
        size = self.batch_size
        if self.vae.device.type == "cpu":
            largest = max(height * width for height, width in buckets)
            size = min(size, max(1, _CPU_PIXELS // largest))
        return [_Piece(ids[start : start + size], buckets) for start in range(0, len(ids), size)]

    def _encoded(self, pieces: Iterable[_Piece]) -> Generator[dict[Bucket | None, Moments], None, None]:
        """Moments of each bucket of each piece, in order; threads decode the next pieces meanwhile."""
        if self.vae.device.type == "cpu":
            with single_threaded_torch():
                yield from map_ahead(lambda piece: self._encode(self._decode(piece)), pieces)
        else:
            yield from map(self._encode, map_ahead(self._decode, pieces))

    def _decode(self, piece: _Piece) -> dict[Bucket, Tensor]:
        """uint8 (n, 3, height, width) of each bucket."""
        pixels: dict[Bucket, list[np.ndarray]] = {bucket: [] for bucket in piece.buckets}
        for name in piece.ids:
            picture = self.read(name)
            for bucket in piece.buckets:
                pixels[bucket].append(np.asarray(resize_and_crop(picture, *bucket)))
        return {bucket: torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2) for bucket, cut in pixels.items()}

    def _encode(self, pixels: Mapping[Bucket, Tensor]) -> dict[Bucket | None, Moments]:
        found: dict[Bucket | None, Moments] = {}
        for bucket, cut in pixels.items():
            values = cut.to(self.vae.device).float() / 127.5 - 1
            mean, std = encode_moments(self.vae, values, self.batch_size)
            found[bucket] = {"mean": mean, "std": std}
            if self.flip:
                mean, std = encode_moments(self.vae, values.flip(-1), self.batch_size)
                found[bucket] |= {"mean_flipped": mean, "std_flipped": std}
        return found

    def _refuse_not_finite(self, ids: Sequence[str], found: Iterable[Moments]) -> None:
        for value in itertools.chain.from_iterable(moments.values() for moments in found):
            if value.sum().isfinite():
                continue  # quicker to know
            good = value.isfinite().flatten(1).all(1)
            if not good.all():
                name = ids[int((~good).nonzero()[0])]
                dtype = str(self.vae.dtype).removeprefix("torch.")
                raise UserError(
                    f"VAE {self.name} computes values that are not finite in {dtype} for "
                    f"{self.place(name)}; use another dtype or VAE"
                )


@contextlib.contextmanager
def deterministic_cudnn() -> Iterator[None]:
    """Equal runs give equal bytes on a GPU, too."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def group_shards(shards: Sequence[PlannedShard]) -> list[Group]:
    """Shards that hold the same images (of one bucket at each resolution), in the order given."""
    groups: dict[bytes, list[PlannedShard]] = {}
    for shard in shards:
        groups.setdefault(np.asarray(shard.rows).tobytes(), []).append(shard)
    return list(groups.values())
