"""Which image belongs to which prompt; the benchmark's own folders, read and written.

Official layout: `{category}/samples/{prompt}_{index:06d}.png`, where `index` counts the images of a category.
"""

import dataclasses
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from pixart_core.artifacts.card import Card, fingerprint, read_card
from pixart_core.artifacts.publish import staged_folder
from pixart_core.artifacts.samples import SAMPLES as SAMPLES_FILE
from pixart_core.artifacts.samples import SampleRecord
from pixart_core.errors import UserError
from pixart_core.evaluation.compbench.prompts import Prompt, prompt_key
from pixart_core.evaluation.image_folder import has_images, read_image_folder
from pixart_core.evaluation.sample_set import SampleSet, read_sample_set
from pixart_core.recipe.compbench import CATEGORIES
from pixart_core.sampling.mark import STARTED

SAMPLES = "samples"
_NAME = re.compile(r"(?P<prompt>.+)_(?P<index>\d+)\.(?:png|jpe?g|webp)", re.IGNORECASE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class PromptImages:
    """A prompt and the samples that were drawn for it, in the set's order."""

    prompt: Prompt
    samples: tuple[SampleRecord, ...]


def images_of_prompts(
    samples: SampleSet, prompts: Mapping[str, Sequence[Prompt]]
) -> dict[str, list[PromptImages]]:
    """The images of every prompt; prompts and categories without images are left out.

    A sample belongs to the prompt of its text (imported ones: of its file's name), in the category that it
    names (`meta["category"]`) or in every category that has the prompt.

    Raises:
        UserError: no sample has a prompt of the benchmark.
    """
    exact, named = _by_text(samples, str), _by_text(samples, prompt_key)
    found: dict[str, list[PromptImages]] = {}
    for category, texts in prompts.items():
        for prompt in texts:
            own = exact(category, prompt.text) or named(category, prompt_key(prompt.text))
            if own:
                found.setdefault(category, []).append(PromptImages(prompt, own))
    if not found:
        example = next(iter(prompts.values()))[0].text
        raise UserError(
            f"samples {samples.name}: no sample has a prompt of T2I-CompBench (such as {example!r}); sample "
            "its prompts, or name a folder of {category}/samples/{prompt}_{index}.png"
        )
    return found


def _by_text(samples: SampleSet, key: Callable[[str], str]) -> Callable[[str, str], tuple[SampleRecord, ...]]:
    """Find the samples of (category, key of a prompt)."""
    drawn: dict[tuple[str | None, str], list[SampleRecord]] = {}
    for sample in samples.samples:
        drawn.setdefault((sample.meta.get("category"), key(sample.prompt)), []).append(sample)

    def find(category: str, text: str) -> tuple[SampleRecord, ...]:
        return (*drawn.get((category, text), ()), *drawn.get((None, text), ()))

    return find


def is_official_layout(folder: Path) -> bool:
    """Whether `folder` holds images of some category as the benchmark's own code lays them out."""
    return any((folder / category / SAMPLES).is_dir() for category in CATEGORIES)


def read_any_samples(name: str, folder: Path) -> SampleSet:
    """What `pixart sample` made, the benchmark's own folders of images, or any folder of images.

    Raises:
        UserError: as `read_sample_set`, `read_official_layout` and `read_image_folder`.
    """
    if read_card(folder) is None and is_official_layout(folder):
        return read_official_layout(name, folder)
    begun = (folder / STARTED).exists() or (folder / SAMPLES_FILE).exists()
    if read_card(folder) is None and not begun and has_images(folder):
        return read_image_folder(name, folder)
    return read_sample_set(name, folder)


def read_official_layout(name: str, folder: Path) -> SampleSet:
    """The images below `folder`, whoever made them, as a sample set.

    Raises:
        UserError: no such folders, no images, a name without prompt and index, or a file that is no image.
    """
    records = [
        record
        for category in CATEGORIES
        if (folder / category / SAMPLES).is_dir()
        for record in _records(folder, category)
    ]
    if not records:
        raise UserError(
            f"{folder} holds no images in {{category}}/{SAMPLES}/ (categories: {', '.join(CATEGORIES)})"
        )
    names = [[record.file, (folder / record.file).stat().st_size] for record in records]
    card = Card("samples", {"command": "imported", "layout": "compbench"}, {"images": fingerprint(names)})
    return SampleSet(name, folder, card, tuple(records))


def _records(folder: Path, category: str) -> list[SampleRecord]:
    """In the order of their index, as the benchmark reads them."""
    named = []
    for path in (folder / category / SAMPLES).iterdir():
        if path.name.startswith(".") or path.is_dir():
            continue
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise UserError(f"{path}: expected {{prompt}}_{{index:06d}}.png")
        named.append((int(match["index"]), path.name, match["prompt"], path))
    records = []
    for index, file, prompt, path in sorted(named):
        try:
            with Image.open(path) as image:
                width, height = image.size
        except (OSError, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: no image that can be read ({error})") from error
        records.append(
            SampleRecord(
                id=f"{category}-{index:06d}",
                file=f"{category}/{SAMPLES}/{file}",
                prompt=prompt,
                seed=0,
                height=height,
                width=width,
                meta={"category": category},
            )
        )
    return records


def export_official_layout(
    samples: SampleSet, images: Mapping[str, Sequence[PromptImages]], output: Path
) -> int:
    """Write the images of all prompts below `output`, for the benchmark's own code; how many.

    Names differ by their index alone where prompts are alike or too long; a slash becomes a dash.

    Raises:
        UserError: `output` holds something already.
        PixartError: it cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} holds something already; choose another folder for the official layout")
    count = 0
    with staged_folder(output) as staging:
        for category, prompts in images.items():
            folder = staging / category / SAMPLES
            folder.mkdir(parents=True)
            drawn = [(entry.prompt, sample) for entry in prompts for sample in entry.samples]
            for index, (prompt, sample) in enumerate(drawn):
                name = f"{prompt_key(prompt.text)}_{index:06d}.png"
                _write_png(samples, sample, folder / name)
            count += len(drawn)
    return count


def _write_png(samples: SampleSet, sample: SampleRecord, path: Path) -> None:
    if sample.file.lower().endswith(".png"):
        shutil.copyfile(samples.folder / sample.file, path)
    else:
        samples.picture(sample).save(path)
