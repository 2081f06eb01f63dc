"""`evaluate` from sample sets to the report: metrics, what is refused, and the page itself."""

import base64
import html.parser
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from pixart_core.artifacts.card import Card, card_for
from pixart_core.data.shapes import draw_scene, render_scene, scene_caption, scene_meta
from pixart_core.data.shapes_dataset import run_shapes
from pixart_core.errors import UserError
from pixart_core.evaluation.charts import loss_chart, smoothed
from pixart_core.evaluation.evaluate import run_evaluation
from pixart_core.progress import Silent
from pixart_core.recipe.data import ShapesStep
from pixart_core.recipe.schema import EvaluateStep, SampleStep
from pixart_core.recipe.training import ModelOptions, TrainStep


def make_samples(
    folder: Path, count: int = 20, *, spoil: int = 0, truth: bool = True, extra: str = ""
) -> Path:
    """A sample set of rendered pictures; the first `spoil` show another scene."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(count):
        scene = draw_scene(0, "heldout", i)
        shown = draw_scene(5, "train", i) if i < spoil else scene
        Image.fromarray(render_scene(shown, 64, 64)).save(folder / f"images/{i:06d}.png")
        row = {"id": f"{i:06d}", "file": f"images/{i:06d}.png", "seed": i, "height": 64, "width": 64}
        row["prompt"] = scene_caption(scene) + extra
        row["meta"] = scene_meta(scene, 64, 64) if truth else {}
        rows.append(row)
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card_for("samples", SampleStep(checkpoint="hub/model"), {}).write(folder)
    return folder


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rows = [{"step": s, "loss": 1 / s, "lr": 1e-3, "images": 4 * s, "seconds": s / 2} for s in range(1, 101)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = TrainStep(
        features="f", model=ModelOptions(), max_train_steps=100, global_batch_size=4, micro_batch_size=4
    )
    card_for("checkpoint", step, {"steps": 100, "images": 400}).write(folder)
    return folder


def evaluate(tmp_path: Path, name: str = "report", **options: object) -> tuple[dict, str, dict]:
    step = EvaluateStep(**({"bootstrap": 50} | options))
    result = run_evaluation(step, tmp_path / name, Silent())
    page = (tmp_path / name / "report.html").read_text()
    return result, page, json.loads((tmp_path / name / "report.json").read_text())


class Page(html.parser.HTMLParser):
    """Collects tags, addresses and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    run_shapes(ShapesStep(count=60, heldout=20), root / "data", Silent())
    return {
        "good": make_samples(root / "good", 30),
        "half": make_samples(root / "half", spoil=10),
        "run": make_run(root / "run"),
        "data": root / "data",
    }


def test_metrics_card_json_and_page_agree(tmp_path: Path, sets: dict[str, Path]) -> None:
    samples = {"good": str(sets["good"]), "half": str(sets["half"])}
    result, page, report = evaluate(tmp_path, samples=samples, runs={"stage 1": str(sets["run"])})
    exact = result["metrics"]["good"]["shapes"]["exact"]
    assert set(exact) == {"score", "null", "exact_minus_null", "ci95", "n"}
    assert exact["score"] == 1
    assert result["metrics"]["half"]["shapes"]["exact"]["score"] == 0.5
    assert json.loads(json.dumps(result["metrics"])) == report["metrics"]
    assert Card.read(tmp_path / "report", "report").details["metrics"] == report["metrics"]
    assert result["report"] == str(tmp_path / "report/report.html")
    text = " ".join(Page(page).text.split())
    assert "In good, 30 of 30 pictures (100 %) show exactly" in text
    assert "In half, 10 of 20 pictures (50 %)" in text
    assert text.count("✗") == 10
    worst = report["galleries"]["half"]["shapes exact"]["worst"]
    assert [entry["score"] for entry in worst] == [0.0] * 6
    assert all(entry["reasons"][-1].startswith("seen: ") and len(entry["reasons"]) > 1 for entry in worst)
    assert len(worst[0]["reasons"]) == max(len(entry["reasons"]) for entry in worst)


def test_stage_table_and_curve_come_from_the_run(tmp_path: Path, sets: dict[str, Path]) -> None:
    _, page, report = evaluate(tmp_path, samples={"a": str(sets["half"])}, runs={"one": str(sets["run"])})
    run = report["runs"]["one"]
    assert (run["images"], run["steps"], run["seconds"], run["batch"]) == (400, 100, 50, 4)
    assert run["curve"] == [[step, pytest.approx(1 / step, abs=1e-6)] for step in range(1, 101)]
    assert page.count("<svg") == 1
    assert "50.0 s" in page


def test_page_is_self_contained_and_has_no_script(tmp_path: Path, sets: dict[str, Path]) -> None:
    _, page, _ = evaluate(tmp_path, samples={"a": str(sets["good"])}, runs={"one": str(sets["run"])})
    parsed = Page(page)
    assert parsed.tags.count("img") == 30 + 6 + 6  # all, and the worst and best prompts
    assert all(address.startswith("data:image/") for address in parsed.addresses)
    assert "script" not in parsed.tags
    assert not re.search(r"url\(|@import|https?://", page)
    picture = base64.b64decode(parsed.addresses[0].split(",")[1])
    assert Image.open(io.BytesIO(picture)).size == (64, 64)


def test_equal_inputs_give_equal_bytes(tmp_path: Path, sets: dict[str, Path]) -> None:
    options = {"samples": {"a": str(sets["half"])}, "runs": {"one": str(sets["run"])}}
    evaluate(tmp_path, "first", **options)
    evaluate(tmp_path, "second", **options)
    for name in ("report.html", "report.json", "card.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_hostile_names_and_prompts_are_shown_as_text(tmp_path: Path, sets: dict[str, Path]) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x>"
    samples = make_samples(tmp_path / "evil", 4, extra=evil)
    options = {"samples": {evil: str(samples)}, "runs": {evil: str(sets["run"])}, "pipeline": evil}
    _, page, _ = evaluate(tmp_path, **options)
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert parsed.tags.count("img") == 4 + 2 + 2
    assert all(address.startswith("data:") for address in parsed.addresses)
    assert evil in parsed.text


def test_frechet_is_small_for_real_pictures_and_names_its_features(
    tmp_path: Path, sets: dict[str, Path]
) -> None:
    options = {"bench": ("shapes", "frechet"), "reference": str(sets["data"])}
    result, page, _ = evaluate(tmp_path, samples={"a": str(sets["half"]), "b": str(sets["good"])}, **options)
    near, far = (result["metrics"][name]["frechet/pixels-8x8"] for name in ("b", "a"))
    assert near["n_reference"] == 20
    assert near["value"] < far["value"]
    assert near["real_images"] > 0
    assert "not FID" in page


def test_samples_without_truth_are_refused_by_shapes_and_shown_otherwise(
    tmp_path: Path, sets: dict[str, Path]
) -> None:
    samples = {"mine": str(make_samples(tmp_path / "mine", 4, truth=False))}
    with pytest.raises(UserError, match=r"mine: sample 1 .*no ground truth"):
        evaluate(tmp_path, samples=samples)
    _, page, _ = evaluate(tmp_path, samples=samples, bench=("frechet",), reference=str(sets["data"]))
    assert Page(page).tags.count("img") == 4
    assert "No benchmark in this report tells" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": {"a": "missing"}}, "missing is not a folder"),
        ({"bench": ("frechet",)}, "give --reference"),
        ({"runs": {"x": "missing"}}, "missing is not a folder"),
        ({"runs": {"x": "SAMPLES"}}, "expected checkpoint"),
    ],
)
def test_mistakes_are_told_and_leave_no_report(
    tmp_path: Path, sets: dict[str, Path], options: dict, message: str
) -> None:
    good = str(sets["half"])
    options = json.loads(json.dumps({"samples": {"a": good}} | options).replace("SAMPLES", good))
    with pytest.raises(UserError, match=message):
        evaluate(tmp_path, **options)
    assert not (tmp_path / "report" / "card.json").exists()


def test_damaged_and_empty_sample_sets_are_named(tmp_path: Path) -> None:
    folder = make_samples(tmp_path / "set", 3)
    (folder / "images/000001.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"000001\.png"):
        evaluate(tmp_path, samples={"a": str(folder)})
    (folder / "samples.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(UserError, match=r"samples\.jsonl"):
        evaluate(tmp_path, samples={"a": str(folder)})
    (folder / "samples.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no samples"):
        evaluate(tmp_path, samples={"a": str(folder)})


def test_smoothing_keeps_lines_and_calms_noise() -> None:
    line = [float(i) for i in range(100)]
    assert smoothed(line) == pytest.approx(line)
    noisy = [1.0 + (-1) ** i * 0.5 for i in range(100)]
    assert all(abs(value - 1) < 0.15 for value in smoothed(noisy)[10:-10])


@pytest.mark.parametrize(
    "curve",
    [[(1, 0.5)], [(1, 0.3), (2, 0.3)], [(1, -0.5), (2, 0.5)], [(1, 0.0), (2, 0.0)], [(1, 1e4), (9, 1e-5)]],
)
def test_charts_stay_inside_their_frame(curve: list[tuple[int, float]]) -> None:
    chart = loss_chart(curve, "loss")
    numbers = re.findall(r"([-\d.]+),([-\d.]+)", " ".join(re.findall(r'points="([^"]*)"', chart)))
    assert numbers
    assert all(0 <= float(x) <= 380 and 0 <= float(y) <= 230 for x, y in numbers)
