"""Gallery and report in headless Chromium, where there is one: prompts stay text, only our script runs."""

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_gallery import HOSTILE, Seen, record, spaceless
from test_report import evaluate, make_samples

from pixart_core.sampling.gallery import GALLERY, render_gallery

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
EVIL = [
    "<script>document.title = 'taken over'</script>",
    "<img src=x onerror=\"document.title = 'taken over'\">",
    "'\"><svg onload=\"document.title = 'taken over'\">",
    "</style></script></title><script>document.title = 'taken over'</script>",
    "javascript:document.title='taken over'",
]


class Dom(HTMLParser):
    """The page as the browser has it after loading."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.title, self.tags, self._within = "", list[tuple[str, dict[str, str | None]]](), ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within = tag

    def handle_data(self, data: str) -> None:
        if self._within == "title":
            self.title += data

    def handle_endtag(self, tag: str) -> None:
        self._within = ""


def opened(page: Path, profile: Path) -> str:
    """The page after loading, as HTML."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    command = [str(BROWSER), *flags, "--dump-dom", page.absolute().as_uri()]
    # A script that got through may wait for an answer for ever.
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def test_a_gallery_of_hostile_prompts_runs_our_script_alone(tmp_path: Path) -> None:
    prompts = [*EVIL, *HOSTILE]
    records = [record(number, prompt=prompt) for number, prompt in enumerate(prompts)]
    (tmp_path / GALLERY).write_text(render_gallery(records, {"checkpoint_path": EVIL[0]}))
    text = opened(tmp_path / GALLERY, tmp_path / "profile")
    dom = Dom(text)
    assert dom.title == f"{len(prompts)} samples"
    assert [tag for tag, _ in dom.tags].count("script") == 1
    assert "svg" not in [tag for tag, _ in dom.tags]
    tools = next(attributes for _, attributes in dom.tags if attributes.get("id") == "tools")
    assert "hidden" not in tools  # our script has run: its hash is the one that the policy allows
    for prompt, figure in zip(prompts, Seen(text).figures, strict=True):
        assert spaceless(prompt) in spaceless(figure)


def test_a_report_of_hostile_prompts_runs_nothing(tmp_path: Path) -> None:
    samples = make_samples(tmp_path / "samples", 4, spoil=2, extra="".join(EVIL))
    evaluate(tmp_path, samples={EVIL[0]: str(samples)}, pipeline=EVIL[1])
    dom = Dom(opened(tmp_path / "report/report.html", tmp_path / "profile"))
    assert dom.title == "PixArt-α evaluation report"
    assert not [tag for tag, _ in dom.tags if tag in ("script", "svg")]
    images = [attributes for tag, attributes in dom.tags if tag == "img"]
    assert len(images) == 4 + 2 + 2
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in images)
    assert not [name for _, attributes in dom.tags for name in attributes if name.startswith("on")]
