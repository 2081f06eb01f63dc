"""What a sampling will draw, known before any weights are loaded: records, batches, sizes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pixart_core.artifacts.card import Card, card_for
from pixart_core.artifacts.samples import SampleRecord, is_drawn
from pixart_core.encoders.quantised import check_quantization
from pixart_core.errors import UserError
from pixart_core.models.files import check_transformer
from pixart_core.recipe.sample import SampleStep
from pixart_core.sampling.bins import SizeChoice
from pixart_core.sampling.draw import batches
from pixart_core.sampling.outline import ModelOutline, read_outline
from pixart_core.sampling.requests import read_requests
from pixart_core.sampling.sizes import Size


class Todo(NamedTuple):
    """A batch, and which of its images are not there yet: it is drawn whole, as ever, so they come out alike.

    Attributes:
        missing: their files.
    """

    records: list[SampleRecord]
    missing: frozenset[str]


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
    """What `pixart sample` draws.

    Attributes:
        records: of all images, in their order.
        batches: of all images: which are drawn together depends neither on what is there nor on processes.
        card: that the sample set will have.
        notes: what the user should know before, one sentence each.
    """

    outline: ModelOutline
    records: Sequence[SampleRecord]
    batches: Sequence[list[SampleRecord]]
    card: Card
    notes: Sequence[str]

    def todo(self, output: Path) -> list[Todo]:
        """The batches of which `output` lacks images.

        Raises:
            UserError: something else has the name of an image.
        """
        missing = [frozenset(r.file for r in batch if not is_drawn(output, r)) for batch in self.batches]
        return [Todo(batch, files) for batch, files in zip(self.batches, missing, strict=True) if files]


def plan_sampling(step: SampleStep) -> SamplingPlan:
    """Read prompts, configs and cards, and check what `step` asks for.

    Raises:
        UserError: checkpoint (weights as far as the headers of their files tell), prompts, sampler or sizes
            are wrong.
    """
    check_quantization(step.text_encoder_quantization)
    outline = read_outline(str(step.checkpoint))
    outline.check_sampler(step.scheduler)
    if (folder := Path(outline.source)).is_dir():  # not on the hub
        check_transformer(folder)
    choice = SizeChoice(outline, any_size=step.any_size)
    asked = read_requests(step, outline.default_size, choice)
    untrained = _untrained_sizes(outline, step, asked)
    records = [
        dataclasses.replace(record, untrained_size=(record.height, record.width) in untrained)
        for record in asked
    ]
    details = outline.facts.to_details() | {"count": len(records), "untrained_sizes": sorted(untrained)}
    if outline.hub is not None:
        details["checkpoint_hub"] = str(outline.hub)
    far = [f"{reason}; drawn all the same (any_size)" for reason in sorted(set(untrained.values()))]
    return SamplingPlan(
        outline,
        records,
        list(batches(records, step.batch_size)),
        card_for("samples", step, details),
        [*choice.notes, *far],
    )


def _untrained_sizes(
    outline: ModelOutline, step: SampleStep, records: Sequence[SampleRecord]
) -> Mapping[Size, str]:
    """Sizes far from those that the model was trained on, and why.

    Raises:
        UserError: there are such without `step.any_size`, or sizes that do not divide into patches.
    """
    untrained = {}
    for height, width in sorted({(record.height, record.width) for record in records}):
        outline.check_size(height, width)
        reason = outline.why_untrained(height, width)
        if reason is not None:
            if not step.any_size:
                raise UserError(f"{reason}; or allow it with --set any_size=true")
            untrained[height, width] = reason
    return untrained
