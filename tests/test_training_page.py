"""Laws of the page of a training: whole, safe, rarely written, and never a reason to stop."""

import base64
import errno
import hashlib
import itertools
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from stores import write_tiny_store
from test_validation import VALIDATION, Stop, make_step
from test_validation_images import encoders, options

from pixart_core.artifacts.publish import write_text
from pixart_core.conversion.initial import run_training
from pixart_core.progress import Silent
from pixart_core.training import page
from pixart_core.training.initial import read_folder
from pixart_core.training.page_images import spread
from pixart_core.training.run import open_run

__all__ = ["encoders"]  # a fixture


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_tiny_store(tmp_path / "features", {(16, 16): 10})


class Seen(HTMLParser):
    """What a browser would load, run and show of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_whole_and_what_users_write_is_only_text(
    tmp_path: Path, store: Path, encoders: Path
) -> None:
    hostile = '<script>alert("x")</script><img src=x onerror=y>'
    drawing = options(encoders, prompts=("a fox", hostile), samples=5, bands=4, raw_weights=True)
    step = make_step(
        store, page=True, validation=drawing, tracker_project_name=hostile, log_every=1, price=2.0
    )
    run_training(step, tmp_path / "run", Silent())
    text = (tmp_path / "run/training.html").read_text()
    seen = Seen(text)
    assert len(seen.all("script")) == 1
    assert all((image["src"] or "").startswith("data:image/") for image in seen.all("img"))
    assert not seen.all("link")
    assert "http://" not in text
    assert "https://" not in text
    assert [link["href"] for link in seen.all("a")] == [
        f"validation/step_00000010/{number}.png" for number in (0, 1)
    ]
    for link in seen.all("a"):
        assert (tmp_path / "run" / str(link["href"])).is_file()
    assert sum(hostile in shown for shown in seen.texts) >= 2  # below its picture, and in the recipe
    # A browser runs this one script, and no other even if one got in.
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(
        str(m["content"]) for m in seen.all("meta") if m.get("http-equiv") == "Content-Security-Policy"
    )
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    titles = {shown.strip() for shown in seen.texts}
    charts = ("Loss", "Validation loss by timestep", "Gradient norm", "Learning rate", "Images per second")
    assert titles >= {*charts, "Waiting for data", "TFLOP/s"}
    assert len(seen.all("svg")) == 7
    assert [image["alt"] for image in seen.all("img")][2:5] == ["step 10", "step 8", "step 4"]
    assert seen.all("html")[0]["data-state"] == "finished"


def test_a_page_shows_what_earlier_sittings_logged(tmp_path: Path, store: Path) -> None:
    step = make_step(store, page=True, log_every=1)
    with pytest.raises(RuntimeError, match="plug"):
        run_training(step, tmp_path / "run", Stop(6))
    run_training(step, tmp_path / "run", Silent())
    lines = Seen((tmp_path / "run/training.html").read_text()).all("polyline")
    assert len(str(lines[0]["points"]).split()) == 10


def test_pages_are_written_seldom_and_only_for_news(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written = [0.0], []
    monkeypatch.setattr(page, "monotonic", lambda: now[0])

    def write(path: Path, text: str) -> None:
        written.append((now[0], "running" if 'data-state="running"' in text else "finished"))
        now[0] += 0.5  # half a second for a page: 49.5 for the training
        write_text(path, text)

    monkeypatch.setattr(page, "write_text", write)

    class Clock(Silent):
        def advance(self, task: str, units: int = 1, note: str = "") -> None:
            now[0] += 4.0 * units

    run_training(make_step(store, page=True, log_every=2, max_train_steps=40), tmp_path / "run", Clock())
    times = [time for time, _ in written]
    assert times[0] >= page.PAUSE
    gaps = [after - before for before, after in itertools.pairwise(times[:-1])]
    assert gaps
    assert all(0.5 / page.SHARE <= gap <= 0.5 / page.SHARE + 10 for gap in gaps)
    assert [state for _, state in written] == ["running"] * (len(written) - 1) + ["finished"]


def test_a_page_that_cannot_be_written_ends_nothing(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(page, "write_text", full_disk)
    monkeypatch.setattr(page, "PAUSE", 0.0)
    said: list[str] = []
    listener = Silent()
    listener.say = said.append  # type: ignore[method-assign]
    run_training(make_step(store, page=True, log_every=1), tmp_path / "run", listener)
    assert len([line for line in said if "training.html failed" in line]) == 1
    assert (tmp_path / "run/card.json").is_file()


def test_a_page_changes_nothing_that_is_trained(tmp_path: Path, store: Path) -> None:
    for name, shown in (("a", True), ("b", False)):
        torch.manual_seed(1)
        run_training(make_step(store, page=shown, validation=VALIDATION), tmp_path / name, Silent())
        assert (tmp_path / name / "training.html").exists() == shown
    file = "transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_million_rows_take_no_more_memory_than_some_thousand() -> None:
    shown = page.Page(None, None)
    for step in range(1, 20_001):
        shown._add({"step": step, "loss": 1.0 / step, "lr": 1e-3, "pace": {"tflops": float(step)}})
    points = shown.curves["tflops"]
    assert 1000 < len(points) <= page.KEPT
    assert points[-1] == (20_000, 20_000.0)
    assert [step for step, _ in points] == sorted(step for step, _ in points)
    # Means of neighbours: a straight line stays one, but for half of what was merged.
    assert all(step * 0.5 - 1 <= value <= step for step, value in points)


def test_lost_steps_are_shown(tmp_path: Path, store: Path) -> None:
    run = open_run(make_step(store), tmp_path / "run", Silent(), read_folder)
    row = {"step": 10, "loss": 1.0}
    assert "Lost steps" not in {tile["name"] for tile in page._tiles(run, row, [])}
    tiles = page._tiles(run, row | {"lost_steps": 3}, [])
    assert [tile["figure"] for tile in tiles if tile["name"] == "Lost steps"] == ["3"]


@pytest.mark.parametrize(("count", "most"), [(1, 5), (5, 5), (6, 5), (1000, 12)])
def test_a_few_of_many_steps_hold_the_first_and_the_last(count: int, most: int) -> None:
    chosen: list[Any] = spread(range(count), most)
    assert len(chosen) == min(count, most) == len(set(chosen))
    assert (chosen[0], chosen[-1]) == (0, count - 1)
