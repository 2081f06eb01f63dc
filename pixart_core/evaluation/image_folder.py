"""A folder of images that anybody made, as a sample set: distances need no more than that."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pixart_core.artifacts.card import Card, fingerprint
from pixart_core.artifacts.samples import SampleRecord
from pixart_core.errors import UserError
from pixart_core.evaluation.sample_set import SampleSet
from pixart_core.recipe.image_counts import IMAGE_SUFFIXES

# They ask about the prompt of an image, or about what it should show.
WITH_PROMPTS = frozenset({"clip", "compbench", "shapes"})


def has_images(folder: Path) -> bool:
    """Whether an image lies in `folder`, or in a folder within."""
    return next(_images(folder), None) is not None


def read_image_folder(name: str, folder: Path) -> SampleSet:
    """The images in `folder` and in folders within, by their paths; the prompt in a `.txt` of the same name.

    Raises:
        UserError: no images, one that cannot be read, or prompts beside some of the images only.
    """
    paths = sorted(_images(folder))
    if not paths:
        raise UserError(f"{folder} holds no images")
    prompts = [_prompt(path) for path in paths]
    if None in prompts and any(prompt is not None for prompt in prompts):
        lacking = paths[prompts.index(None)]
        raise UserError(
            f"samples {name}: {lacking} has no {lacking.stem}.txt beside it, other images have one"
        )
    records = []
    for path, prompt in zip(paths, prompts, strict=True):
        file = path.relative_to(folder).as_posix()
        height, width = _size(path)
        records.append(
            SampleRecord(id=file, file=file, prompt=prompt or "", seed=0, height=height, width=width)
        )
    sizes = [[record.file, (folder / record.file).stat().st_size] for record in records]
    card = Card("samples", {"command": "imported", "layout": "images"}, {"images": fingerprint(sizes)})
    return SampleSet(name, folder, card, tuple(records))


def refuse_without_prompts(samples: SampleSet, benches: tuple[str, ...]) -> None:
    """Raises:
    UserError: a bench of `benches` needs the prompts, and `samples` are images alone."""
    asking = [bench for bench in benches if bench in WITH_PROMPTS]
    if asking and samples.card.options.get("layout") == "images" and not all(samples.prompts):
        raise UserError(
            f"samples {samples.name}: {samples.folder} is a folder of images without prompts, which bench "
            f"{' and '.join(asking)} needs: put each prompt into a .txt beside its image, or name what "
            "`pixart sample` made"
        )


def _images(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file():
            yield path


def _prompt(image: Path) -> str | None:
    try:
        return image.with_suffix(".txt").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{image.with_suffix('.txt')}: cannot be read ({error})") from error


def _size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: no image that can be read ({error})") from error
