"""Laws of a sample set's gallery and contact sheet: all is shown, as text, from the set's own files."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_pipelines import write_tiny_pipeline

from pixart_core.artifacts.card import fingerprint_input
from pixart_core.artifacts.samples import SampleRecord, image_file, read_samples
from pixart_core.progress import Silent
from pixart_core.recipe.schema import SampleStep
from pixart_core.sampling import gallery, sheet
from pixart_core.sampling.gallery import GALLERY, PAGE, render_gallery
from pixart_core.sampling.sample import run_sampling
from pixart_core.sampling.sheet import CELL, TEXT_LINES, printable, wrapped, write_sheet

HOSTILE = [
    "<script>alert(1)</script>",
    "\"' onerror=alert(1) x='",
    "</style></figure></main><img src=x onerror=alert(1)>",
    "<!-- &amp; &lt;b&gt; {{ 7 * 7 }} {% raw %}",
    "مربع أحمر كبير",
    "\u202egnp.exe",
    "a 猫 on 🔥 and 👩‍🚀",
    "word " * 2000,
    "x" * 5000,
]


class Seen(HTMLParser):
    """What a browser would make of a page: tags with attributes, and the text of each figure."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.figures: list[str] = []
        self.text = ""
        self.script = ""
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self._open.append(tag)
        if tag == "figure":
            self.figures.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, "tags are closed in order, so no prompt opened or closed one"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.script += data
        elif "figure" in self._open:
            self.figures[-1] += data
        elif "style" not in self._open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def record(number: int, **changes: object) -> SampleRecord:
    values = {
        "id": f"{number:06d}",
        "file": image_file(number),
        "prompt": f"prompt {number}",
        "seed": 1000 + number,
        "height": 64,
        "width": 96,
        "negative_prompt": "",
        "guidance_scale": 4.5,
        "num_inference_steps": 20,
    }
    return SampleRecord(**(values | changes))  # type: ignore[arg-type]


def spaceless(text: str) -> str:
    return "".join(text.split())


def test_prompts_are_text_whatever_they_hold() -> None:
    records = [record(number, prompt=prompt) for number, prompt in enumerate(HOSTILE)]
    page = Seen(render_gallery(records, {"checkpoint_path": HOSTILE[0]}))
    for one, figure in zip(records, page.figures, strict=True):
        assert spaceless(one.prompt) in spaceless(figure)
        assert f"seed {one.seed}" in figure
    assert len(page.all("script")) == 1
    assert HOSTILE[0] in page.text
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_prompt_comes_out_as_it_went_in_but_for_control_characters(prompt: str) -> None:
    page = render_gallery([record(0, prompt=prompt, negative_prompt=prompt)], {})
    page.encode()  # lone surrogates could not be written
    shown = Seen(page).figures[0]
    cleaned = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", prompt)
    assert spaceless(cleaned) in spaceless(shown)


def test_nothing_is_loaded_from_elsewhere_and_only_our_script_may_run() -> None:
    text = render_gallery([record(number) for number in range(3)], {})
    page = Seen(text)
    hashed = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    policy = next(str(meta["content"]) for meta in page.all("meta") if "http-equiv" in meta)
    assert f"script-src 'sha256-{hashed}'" in policy
    assert "default-src 'none'" in policy
    addresses = [a[key] for _, a in page.tags for key in ("src", "href") if a.get(key)]
    assert addresses
    assert set(addresses) == {"samples.jsonl", *(image_file(number) for number in range(3))}
    assert not re.search(r"url\(|@import|https?:|//[a-z]", re.sub(r"//.*", "", text))


def test_without_script_every_image_is_there_lazy_and_a_link_to_its_file() -> None:
    records = [record(number) for number in range(2 * PAGE + 1)]
    page = Seen(render_gallery(records, {}))
    images = [image for image in page.all("img") if "src" in image]
    assert [image["src"] for image in images] == [one.file for one in records]
    assert {(image["loading"], image["width"], image["height"]) for image in images} == {("lazy", "96", "64")}
    assert [link["href"] for link in page.all("a") if link.get("class")] == [one.file for one in records]
    # What is folded is not laid out, nor its images loaded: 30,000 open as fast as 500.
    assert ["open" in details for details in page.all("details")] == [True, False, False]


def test_images_of_one_prompt_stand_below_it_on_one_page() -> None:
    copies = [record(n, id=f"p{n // 4}", prompt=f"fox {n // 4}") for n in range(PAGE + 2)]
    page = Seen(render_gallery(copies, {}))
    prompts = len({one.id for one in copies})
    assert len(page.all("article")) == prompts
    assert page.text.count("fox ") == prompts
    assert not any("fox" in figure for figure in page.figures)
    (first, second) = gallery._pages([copies[at : at + 4] for at in range(0, len(copies), 4)])
    assert sum(map(len, first)) == PAGE
    assert sum(map(len, second)) == 2


def test_what_all_images_share_is_said_once_and_what_differs_at_each() -> None:
    records = [record(number, guidance_scale=1.5 * (1 + number)) for number in range(3)]
    settings = {"scheduler": "sa-solver", "guidance_interval": (0.2, 0.8), "weights_hash": None}
    page = Seen(render_gallery(records, settings))
    text = " ".join(page.text.split())
    assert "sampler sa-solver" in text
    assert "steps 20" in text
    assert "guided within 0.2 to 0.8" in text
    assert "64 × 96" in text
    assert "guidance " not in text
    assert [f"guidance {1.5 * (1 + n):g}" in figure for n, figure in enumerate(page.figures)] == [True] * 3
    assert not any("steps" in figure for figure in page.figures)


def test_every_sample_set_has_one_and_needs_none(tmp_path: Path) -> None:
    pipeline = write_tiny_pipeline(tmp_path / "model")
    step = SampleStep(
        checkpoint=str(pipeline),
        prompts=("a red circle", HOSTILE[0]),
        images_per_prompt=2,
        num_inference_steps=2,
    )
    run_sampling(step, tmp_path / "a", Silent())
    run_sampling(step, tmp_path / "b", Silent())
    written = (tmp_path / "a" / GALLERY).read_bytes()
    assert written == (tmp_path / "b" / GALLERY).read_bytes()
    page = Seen(written.decode())
    records = read_samples(tmp_path / "a")
    assert [image["src"] for image in page.all("img") if "src" in image] == [one.file for one in records]
    assert all(f"seed {one.seed}" in page.figures[number] for number, one in enumerate(records))
    before = fingerprint_input(tmp_path / "a")
    (tmp_path / "a" / GALLERY).unlink()
    assert fingerprint_input(tmp_path / "a") == before  # sets from before it are not stale


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80))
def test_the_sheet_draws_no_boxes_and_stays_in_its_cells(prompt: str) -> None:
    text, font = printable(prompt), sheet._font()
    assert all(sheet._has_glyph(letter) for letter in text)
    lines = wrapped(text, font)
    assert len(lines) <= TEXT_LINES
    assert all(font.getlength(line) <= CELL for line in lines)


def test_the_sheet_says_in_letters_what_it_can() -> None:
    assert printable("a 猫 on a 🔥") == "a … on a [fire]"
    assert printable("café  naïve\nŁódź “x”") == "café naïve Łódź “x”"
    assert printable("красный круг α → β") == "красный круг α → β"
    assert printable("赤い大きな円") == printable("مربع أحمر") == ""  # the file's name stands there then


def test_a_sheet_of_hostile_prompts_and_thin_pictures_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    records = [record(number, prompt=prompt) for number, prompt in enumerate(HOSTILE)]
    for number, one in enumerate(records):
        Image.new("RGB", (1 + 600 * (number % 2), 300)).save(tmp_path / one.file)
    write_sheet(tmp_path, records)
    with Image.open(tmp_path / sheet.SHEET) as picture:
        assert picture.size == (12 + 8 * 172, 12 + 2 * (160 + 4 * 13 + 12))
