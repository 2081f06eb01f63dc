"""What every recipe model builds on: strictness, and sources that may be other steps."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """Unknown keys are errors, and nothing changes after it was read.

    Attributes:
        unrecorded: fields that what is made does not depend on: they may change between two sittings of a
            run, are in no card, and a chain does nothing again because of them.
        rounding: fields that change no more than the rounding: they may change between two sittings, too.
        inputs: of options within a step, the fields that are paths or hub ids: cards hold what lies there
            (a fingerprint), not the path.
    """

    unrecorded: ClassVar[frozenset[str]] = frozenset()
    rounding: ClassVar[frozenset[str]] = frozenset()
    inputs: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(extra="forbid", frozen=True)


class FromStep(Strict):
    """The output folder of another step of the same recipe: `{step: stage1}`."""

    step: str


Source = Annotated[str | FromStep, Field(description="A path, a hub id, or {step: NAME}.")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
