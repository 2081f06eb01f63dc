"""`gallery.html` of a sample set: every image beside its prompt, in one file that opens in any browser.

Images stay files of their own, loaded as they come into view; nothing is loaded from elsewhere. A small
script filters and enlarges; without it all is there too. Equal sets give equal bytes.
"""

import base64
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pixart_core import __version__
from pixart_core.artifacts.pages import page_environment
from pixart_core.artifacts.provenance import Provenance
from pixart_core.artifacts.publish import write_text
from pixart_core.artifacts.samples import SampleRecord

GALLERY = "gallery.html"
TEMPLATES = Path(__file__).parent / "templates"
PAGE = 500  # images that are unfolded together
CRISP_BELOW = 160  # pixels; smaller pictures are enlarged without smoothing
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # a page must not hold them
_NAMES = {
    "scheduler": "sampler",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "guidance_interval": "guided within",
    "size": "height × width",
    "negative_prompt": "negative prompt",
    "dtype": "number type",
    "device": "device",
    "checkpoint_path": "checkpoint",
    "weights_hash": "weights",
    "pixart_version": "pixart",
    "torch_version": "torch",
}

Group = list[SampleRecord]


def write_gallery(folder: Path, records: Sequence[SampleRecord]) -> None:
    """Write `gallery.html` of the sample set in `folder`, whose images are there.

    What they have in common (sampler, weights, versions) is said as the first image tells it.

    Raises:
        UserError: the first image does not tell how it was made.
        PixartError: the folder cannot be written.
    """
    settings = dataclasses.asdict(Provenance.read(folder / records[0].file).settings)
    write_text(folder / GALLERY, render_gallery(records, settings))


def render_gallery(records: Sequence[SampleRecord], settings: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        settings: what all images have in common, as `Settings` names it.
    """
    environment = page_environment(TEMPLATES)
    environment.filters["clean"] = _clean
    rows = [_facts(record) for record in records]
    common = {name: rows[0][name] for name in rows[0] if len({row[name] for row in rows}) == 1}
    groups = [list(group) for _, group in groupby(records, key=lambda record: record.id)]
    script = (TEMPLATES / "gallery.js").read_text(encoding="utf-8")
    return environment.get_template("gallery.html.j2").render(
        version=__version__,
        images=len(records),
        prompts=len({record.prompt for record in records}),
        facts=_named(_common_settings(settings) | common),
        pages=[_page(groups, common) for groups in _pages(groups)],
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _facts(record: SampleRecord) -> dict[str, str]:
    """What an image may have for itself, in words."""
    guidance = record.guidance_scale
    return {
        "num_inference_steps": "" if record.num_inference_steps is None else str(record.num_inference_steps),
        "guidance_scale": "" if guidance is None else f"{guidance:g}",
        "size": f"{record.height} × {record.width}",
        "negative_prompt": record.negative_prompt or "",
    }


def _common_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    told = {name: settings[name] for name in _NAMES if settings.get(name) is not None}
    return {
        name: " to ".join(f"{part:g}" for part in value) if isinstance(value, (tuple, list)) else str(value)
        for name, value in told.items()
    }


def _named(facts: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, facts[field]) for field, name in _NAMES.items() if facts.get(field)]


def _pages(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Images of one prompt (a group) stay on one page, of `PAGE` images or a few more."""
    page: list[Group] = []
    for group in groups:
        page.append(group)
        if sum(map(len, page)) >= PAGE:
            yield page
            page = []
    if page:
        yield page


def _page(groups: Sequence[Group], common: Mapping[str, str]) -> dict[str, Any]:
    """Blocks of a page: images side by side with a prompt each, or all images of one prompt below it."""
    blocks: list[dict[str, Any]] = []
    for single, neighbours in groupby(groups, key=lambda group: len(group) == 1):
        if single:
            blocks.append({"prompt": None, "images": [_image(record, common) for (record,) in neighbours]})
        else:
            for group in neighbours:
                images = [_image(record, common) for record in group]
                blocks.append({"prompt": group[0].prompt, "images": images})
    return {"first": groups[0][0].file, "last": groups[-1][-1].file, "blocks": blocks}


def _image(record: SampleRecord, common: Mapping[str, str]) -> dict[str, Any]:
    own = [
        f"{_NAMES[name]} {value}" if name != "size" else value
        for name, value in _facts(record).items()
        if name not in common and value
    ]
    return {
        "file": record.file,
        "prompt": record.prompt,
        "seed": record.seed,
        "own": own + (["a size it was not trained on"] if record.untrained_size else []),
        "height": record.height,
        "width": record.width,
        "crisp": max(record.height, record.width) < CRISP_BELOW,
    }


def _clean(text: str) -> str:
    """`text` without what no page may hold, each such character as U+FFFD."""
    return _CONTROL.sub("\ufffd", text)
