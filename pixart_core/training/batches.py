"""From stored features to a batch to train on: every draw depends on (seed, step, place in the batch)."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixart_core.artifacts.features import FeatureBatch
from pixart_core.diffusion.schedule import NUM_TIMESTEPS
from pixart_core.seeding import derive_seed


@dataclasses.dataclass(frozen=True)
class TrainingBatch:
    """One micro-batch, on the device that trains.

    Attributes:
        latents: scaled VAE latents (mean 0, standard deviation about 1).
        text, mask: caption tokens after caption dropout; None for a class-conditional model.
        labels: classes after dropout to the null class; None for a text-conditional model.
        resolution, aspect_ratio: micro-conditions: original (height, width); bucket's height / width.
        ids: manifest ids, for error messages.
        kept_tokens: those that take all blocks (token routing); None: all of them.
    """

    latents: Float[Tensor, "b c h w"]
    noise: Float[Tensor, "b c h w"]
    timesteps: Int[Tensor, " b"]
    text: Float[Tensor, "b l d"] | None
    mask: Bool[Tensor, "b l"] | None
    labels: Int[Tensor, " b"] | None
    resolution: Float[Tensor, "b 2"]
    aspect_ratio: Float[Tensor, "b 1"]
    ids: list[str]
    kept_tokens: Int[Tensor, "b k"] | None = None

    def to(self, device: torch.device) -> "TrainingBatch":
        """The same batch on `device`."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "TrainingBatch":
        """The same batch in page-locked memory, from which a GPU fetches it while it computes."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "TrainingBatch":
        changed: dict[str, Any] = {
            field.name: change(value)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **changed)


def pinned(batches: Iterable[TrainingBatch], device: torch.device) -> Iterator[TrainingBatch]:
    """`batches` in page-locked memory, whatever thread asks for them."""
    if device.index is not None:
        torch.cuda.set_device(device)  # each thread begins with the first GPU, and would take memory there
    for batch in batches:
        yield batch.pinned()


@dataclasses.dataclass(frozen=True)
class Unconditional:
    """What a dropped caption becomes.

    Attributes:
        tokens: the encoded empty caption (l, d), or the learned embedding (max_tokens, d).
        keeps_mask: the learned embedding replaces tokens one by one and keeps the caption's length
            (released code); the empty caption brings its own.
    """

    tokens: Float[Tensor, "l d"]
    keeps_mask: bool


def make_batch(
    features: FeatureBatch,
    slots: Sequence[int],
    *,
    seed: int,
    step: int,
    scaling_factor: float,
    shift_factor: float,
    dropout: float,
    unconditional: Unconditional | None,
    null_class: int | None,
) -> TrainingBatch:
    """Sample moments, noise, timesteps and drops for `features`.

    Args:
        slots: place of each sample in the global batch, from which, with `seed` and `step`, its draws
            derive: they stay the same however the batch is split over processes.
        unconditional: text models; `null_class`: class models. Exactly one of them is given.
    """
    shape = features.mean.shape[1:]
    generator = torch.Generator()
    sampled = bool(features.std.any())  # a VAE without noise needs no draws
    draws, noise, timesteps, drops = [], [], [], []
    for slot in slots:
        generator.manual_seed(derive_seed(seed, "sample", step, slot))
        timesteps.append(int(torch.randint(NUM_TIMESTEPS, (), generator=generator)))
        drops.append(float(torch.rand((), generator=generator)) < dropout)
        noise.append(torch.randn(shape, generator=generator))
        if sampled:
            draws.append(torch.randn(shape, generator=generator))
    moments = features.mean + features.std * torch.stack(draws) if sampled else features.mean
    dropped = torch.tensor(drops)

    text = mask = labels = None
    if unconditional is not None:
        text, mask = drop_captions(features.text, features.mask, dropped, unconditional)
    else:
        assert null_class is not None
        labels = torch.where(dropped, null_class, features.labels)
    height, width = shape[-2:]
    return TrainingBatch(
        latents=(moments - shift_factor) * scaling_factor,
        noise=torch.stack(noise),
        timesteps=torch.tensor(timesteps),
        text=text,
        mask=mask,
        labels=labels,
        resolution=features.sizes.float(),
        aspect_ratio=torch.full((len(drops), 1), height / width),
        ids=features.ids,
    )


def draw_flips(seed: int, step: int, slots: Sequence[int]) -> list[bool]:
    """Which samples are mirrored, from (seed, step, place in the global batch) like every other draw."""
    return [bool(derive_seed(seed, "flip", step, slot) % 2) for slot in slots]


def drop_captions(
    text: Float[Tensor, "b l d"],
    mask: Bool[Tensor, "b l"],
    dropped: Bool[Tensor, " b"],
    unconditional: Unconditional,
) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
    """Replace the captions of the dropped samples; the inputs are left as they are."""
    if not dropped.any():
        return text, mask
    tokens = unconditional.tokens
    if not unconditional.keeps_mask and len(tokens) > text.shape[1]:
        missing = len(tokens) - text.shape[1]
        text = torch.nn.functional.pad(text, (0, 0, 0, missing))
        mask = torch.nn.functional.pad(mask, (0, missing))
    length = text.shape[1]
    row = torch.zeros_like(text[0])
    row[: len(tokens)] = tokens[:length]
    text = torch.where(dropped[:, None, None], row, text)
    if not unconditional.keeps_mask:
        mask = torch.where(dropped[:, None], torch.arange(length) < len(tokens), mask)
    return text, mask
