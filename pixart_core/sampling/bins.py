"""Resolution bins: of the sizes of a model, the one whose shape is nearest to what is asked for."""

from fractions import Fraction

from pixart_core.data.buckets import PAPER_BUCKETS_1024, Size, assign_bucket
from pixart_core.errors import UserError
from pixart_core.sampling.outline import ModelOutline
from pixart_core.sampling.sizes import name_sizes

# A bin may be this much longer or shorter in shape; neighbours of the paper's 40 differ by at most 1.1.
NEAR = 1.2
MOST_NOTES = 8


class SizeChoice:
    """Chooses a size for `ar`, or for `height` and `width`, and remembers what to tell of it."""

    def __init__(self, model: ModelOutline, *, any_size: bool) -> None:
        self._model = model
        self._any_size = any_size
        self._bins = resolution_bins(model)
        self._notes: dict[str, None] = {}

    @property
    def notes(self) -> list[str]:
        """A line for each size that is not what was asked for literally."""
        notes = list(self._notes)
        more = len(notes) - MOST_NOTES
        return [*notes[:MOST_NOTES], f"and {more} more sizes by their nearest bin"] if more > 0 else notes

    def of_aspect(self, ar: str) -> Size:
        """The bin for `ar` (width:height).

        Raises:
            UserError: there is none of about that shape.
        """
        width, height = (Fraction(part) for part in ar.split(":"))
        aspect = height / width
        size = self._nearest(aspect) if self._bins else self._of_default_area(aspect)
        if size is None:
            sizes = f"only {name_sizes(self._bins)}" if self._bins else "no size"
            raise UserError(
                f"ar {ar}: {self._model.source} has {sizes}, none of about that shape; ask for a size with "
                "--set sizes=[[HEIGHT,WIDTH]]"
            )
        self._note(f"ar {ar}", size)
        return size

    def of_size(self, height: int, width: int) -> Size:
        """The bin for a size; the size itself with `any_size`, or where there is none of about its shape.

        A size far from the resolution stays as it is too: it will be refused.
        """
        size = (height, width)
        if self._any_size or size in (*self._bins, self._model.default_size):
            return size
        bin_ = self._nearest(Fraction(height, width))
        if bin_ is None or self._model.why_untrained(height, width):
            return size
        self._note(f"{height}x{width}", bin_, "; --set any_size=true draws it as asked")
        return bin_

    def _nearest(self, aspect: Fraction) -> Size | None:
        """The bin nearest to a height / width by their ratio, as training chooses it for an image.

        diffusers goes by their difference, over rounded ratios: for 4:3 it takes the neighbour.
        """
        if not self._bins:
            return None
        bin_ = assign_bucket(aspect.numerator, aspect.denominator, self._bins)
        return bin_ if _alike(aspect, bin_) else None

    def _of_default_area(self, aspect: Fraction) -> Size | None:
        """About as many pixels as the default has, in whole patches."""
        height, width = self._model.default_size
        step = self._model.pixels_per_latent * self._model.config.patch_size
        side = (height * width) ** 0.5
        rows = max(1, round(side * float(aspect) ** 0.5 / step))
        columns = max(1, round(side / float(aspect) ** 0.5 / step))
        size = (rows * step, columns * step)
        return size if _alike(aspect, size) else None

    def _note(self, asked: str, bin_: Size, remedy: str = "") -> None:
        of = f"of the {len(self._bins)} sizes" if self._bins else "in whole patches of the default size"
        size = f"{bin_[0]}x{bin_[1]} (height x width)"
        note = f"{asked}: drawn at {size}, the nearest in shape {of} of {self._model.source}{remedy}"
        self._notes[note] = None


def _alike(aspect: Fraction, size: Size) -> bool:
    return 1 / NEAR <= float(aspect) * size[1] / size[0] <= NEAR


def resolution_bins(model: ModelOutline) -> tuple[Size, ...]:
    """The sizes that the model was trained on if there are several; else the paper's 40 at its resolution.

    Empty when its default is no square, or the table does not divide into patches there.
    """
    if len(model.facts.trained_sizes) > 1:
        return model.facts.trained_sizes
    height, width = model.default_size
    step = model.pixels_per_latent * model.config.patch_size
    scaled = [(h * height, w * height) for h, w in PAPER_BUCKETS_1024]
    if height != width or any(side % (1024 * step) for size in scaled for side in size):
        return ()
    return tuple((h // 1024, w // 1024) for h, w in scaled)
