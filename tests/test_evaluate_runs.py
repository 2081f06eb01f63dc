"""`evaluate` with every bench at once: killed, by two processes, in part, against statistics, and refused."""

import hashlib
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import evaluate_and_kill, evaluate_as_the_second
from inception_weights import save_weights
from PIL import Image
from test_report import Page, make_samples
from tiny_vision import save_clip, save_dinov2

from pixart_core.errors import UserError
from pixart_core.evaluation import evaluate as front
from pixart_core.evaluation.evaluate import run_evaluation
from pixart_core.progress import Silent
from pixart_core.recipe.evaluate import EvaluateStep

FILES = ("report.json", "report.html", "report.md", "card.json")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("given")
    random = np.random.default_rng(0)
    (root / "real").mkdir()
    for number in range(30):
        pixels = random.integers(0, 256, (12, 12 + number % 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 48)).save(root / f"real/{number}.png")
    return {
        "new": str(make_samples(root / "new", 24)),
        "old": str(make_samples(root / "old", 24, spoil=12)),
        "reference": str(root / "real"),
        "clip": str(save_clip(root / "tiny-clip")),
        "dinov2": str(save_dinov2(root / "tiny-dinov2")),
        "inception": str(save_weights(root / "formula.pth")),
    }


def step(given: dict[str, str], **options: Any) -> EvaluateStep:
    values: dict[str, Any] = {
        "bench": ("shapes", "clip", "cmmd", "fd-dinov2", "frechet"),
        "samples": {"new": given["new"], "old": given["old"]},
        "reference": given["reference"],
        "clip_model": given["clip"],
        "cmmd_model": given["clip"],
        "dinov2_model": given["dinov2"],
        "batch_size": 5,
        "bootstrap": 50,
        "device": "cpu",
    }
    return EvaluateStep.model_validate(values | options)


def run(step: EvaluateStep, output: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    result = run_evaluation(step, output, Silent())
    return result, {name: (output / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def undisturbed(
    given: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, bytes]]:
    return run(step(given), tmp_path_factory.mktemp("undisturbed") / "report")


def test_killed_in_the_middle_of_a_write_it_ends_with_the_same_bytes(
    tmp_path: Path, given: dict[str, str], undisturbed: tuple[dict[str, Any], dict[str, bytes]]
) -> None:
    output = tmp_path / "report"
    evaluate_and_kill(step(given), output, batch=5)
    assert run(step(given), output)[1] == undisturbed[1]


def test_two_processes_end_with_the_same_bytes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    undisturbed: tuple[dict[str, Any], dict[str, bytes]],
) -> None:
    output = tmp_path / "report"
    evaluate_as_the_second(step(given), output, monkeypatch)
    assert run(step(given), output)[1] == undisturbed[1]


def test_a_second_run_computes_nothing_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    undisturbed: tuple[dict[str, Any], dict[str, bytes]],
) -> None:
    first = run(step(given), tmp_path / "first")[1]

    def fail(*_: object) -> None:
        raise AssertionError("features were computed again")

    monkeypatch.setattr("pixart_core.evaluation.feature_cache.FeatureCache.append", fail)
    assert run(step(given), tmp_path / "second")[1] == first == undisturbed[1]


def test_every_result_stands_under_its_protocol_and_pairs_are_compared(
    undisturbed: tuple[dict[str, Any], dict[str, bytes]],
) -> None:
    metrics = undisturbed[0]["metrics"]["new"]
    assert set(metrics) == {
        "shapes",
        "clip/tiny-clip-cos@1",
        "cmmd/tiny-clip@1",
        "fd-dinov2/tiny-dinov2@1",
        "frechet/pixels-8x8",
    }
    assert metrics["cmmd/tiny-clip@1"]["n_reference"] == 30
    report = json.loads(undisturbed[1]["report.json"])
    pairs = {row["protocol"]: row for row in report["paired"]}
    # Half of the prompts of "old" have another scene; "new" shows every prompt's own.
    assert pairs["shapes exact"]["difference"] == 0.5
    assert pairs["shapes exact"]["distinguishable"]
    assert set(pairs) == {"shapes exact", *metrics} - {"shapes"}
    assert f"| {pairs['shapes exact']['n']} | yes |" in undisturbed[1]["report.md"].decode()
    page = Page(undisturbed[1]["report.html"].decode())
    assert "script" not in page.tags
    for protocol in set(metrics) - {"shapes"}:
        assert page.text.count(protocol) >= 1
    assert "not distinguishable" in page.text


def test_compbench_has_its_tables_galleries_pairs_and_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    def result_of(samples: Any) -> dict[str, Any]:
        good = samples.name == "new"
        prompts = [
            {
                "prompt": sample.prompt,
                "score": 0.5 + 0.3 * good + 0.001 * number,
                "null": 0.1,
                "images": [
                    {
                        "file": sample.file,
                        "score": 0.5 + 0.3 * good + 0.001 * number,
                        "reasons": [f"<b>no</b> fox {number}"],
                    }
                ],
            }
            for number, sample in enumerate(samples.samples)
        ]
        result = {"protocol": "compbench/blip480-np8@1", "comparable": False, "partial": True, "n": 24}
        result |= {"score": 0.5, "ci95": [0.4, 0.6], "null": 0.1, "score_minus_null": 0.4, "n_prompts": 24}
        result |= {"score_minus_null_ci95": [0.3, 0.5], "ceiling": 0.67, "prompts": prompts}
        missing = {"part": "UniDet", "categories": ["spatial"], "size": "1 GB", "fix": "Give detections."}
        return {"categories": {"color": result}, "missing": [missing]}

    def opened(samples: Any, *_: Any, **__: Any) -> Any:
        return types.SimpleNamespace(askers=[], result=lambda: result_of(samples))

    monkeypatch.setattr(front, "open_compbench", opened)
    result, files = run(step(given, bench=("compbench",)), tmp_path / "report")
    assert "prompts" not in result["metrics"]["new"]["compbench"]["categories"]["color"]
    report = json.loads(files["report.json"])
    gallery = report["galleries"]["new"]["compbench/blip480-np8@1 color"]
    assert [entry["score"] for entry in gallery["worst"]] == pytest.approx(
        [0.8 + 0.001 * i for i in range(6)]
    )
    assert gallery["best"][0]["score"] == pytest.approx(0.823)
    (pair,) = report["paired"]
    assert pair["difference"] == pytest.approx(0.3)
    page = Page(files["report.html"].decode())
    text = " ".join(page.text.split())
    assert "color † compbench/blip480-np8@1" in text
    assert "spatial: UniDet (1 GB). Give detections." in text
    assert "<b>no</b> fox 0" in text
    assert (
        "which does not belong into this table: protocol compbench/blip480-np8@1 is not the official" in text
    )
    assert "UniDet" in files["report.md"].decode()


def test_fid_is_called_so_with_the_published_weights_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    options = {"bench": ("fid",), "inception": given["inception"], "limit": 4, "reference_limit": 3}
    result, _ = run(step(given, **options), tmp_path / "other")
    names = set(result["metrics"]["new"])
    assert all(name.startswith(("frechet/inception-", "kernel/inception-")) for name in names)
    report = json.loads((tmp_path / "other/report.json").read_text())
    assert report["paper"] == {}
    assert report["reference"] == {"images": 3, "left_out": 27}
    weights = next(iter(result["metrics"]["new"].values()))["weights"]
    monkeypatch.setattr("pixart_core.evaluation.extractors.SHA256_PREFIX", weights)
    result, files = run(step(given, **options), tmp_path / "published")
    assert set(result["metrics"]["new"]) == {"fid/coco256-cleanfid@1", "kid/coco256-cleanfid@1"}
    ours = json.loads(files["report.json"])["paper"]["fid"]["ours"][0]
    assert len(ours["reasons"]) == 2  # too few samples, too few reference images
    text = " ".join(Page(files["report.html"].decode()).text.split())
    assert "Partial. Of new, 4 of 24 samples were scored" in text
    assert "which does not belong into this table: 4 samples, not 30,000" in text


def test_statistics_of_another_protocol_are_refused_and_of_the_same_give_the_same_number(
    tmp_path: Path, given: dict[str, str]
) -> None:
    kept, _ = run(step(given, bench=("frechet", "fd-dinov2"), save_statistics=True), tmp_path / "kept")
    saved = tmp_path / "kept/statistics/frechet-pixels-8x8.npz"
    again, _ = run(step(given, bench=("frechet",), reference=str(saved)), tmp_path / "again")
    for name in ("new", "old"):
        assert again["metrics"][name]["frechet/pixels-8x8"] == kept["metrics"][name]["frechet/pixels-8x8"]
    with pytest.raises(UserError, match=r"statistics of frechet/pixels-8x8.* cannot be compared"):
        run(step(given, bench=("fd-dinov2",), reference=str(saved)), tmp_path / "refused")
    with pytest.raises(UserError, match="cmmd compares with images, not statistics"):
        run(step(given, bench=("cmmd",), reference=str(saved)), tmp_path / "refused")
    assert not (tmp_path / "refused/report.json").exists()


def test_statistics_of_pytorch_fid_count_as_its_protocol_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    path = tmp_path / "theirs.npz"
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
    options = {"bench": ("fid",), "inception": given["inception"], "limit": 3, "reference": str(path)}
    prefix = hashlib.sha256(Path(given["inception"]).read_bytes()).hexdigest()[:8]
    monkeypatch.setattr("pixart_core.evaluation.extractors.SHA256_PREFIX", prefix)
    with pytest.raises(UserError, match=r"statistics of fid/pytorch-fid@1.*set reference_protocol"):
        run(step(given, **options), tmp_path / "refused")
    told = run(step(given, **options, reference_protocol="coco256-cleanfid"), tmp_path / "told")[0]
    assert told["metrics"]["new"]["fid/coco256-cleanfid@1"]["n_reference"] is None


def save_pixels(path: Path, mu: np.ndarray, sigma: np.ndarray) -> None:
    np.savez(path, mu=mu, sigma=sigma, protocol="frechet/pixels-8x8", weights="")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"PK\x03\x04 cut off"), "cannot be read as statistics"),
        (lambda path: np.savez(path, mu=np.zeros(192)), "holds no sigma"),
        (lambda path: np.savez(path, mu=np.zeros(2), sigma=np.eye(2)), "cannot be compared"),
        (lambda path: save_pixels(path, np.zeros(2), np.eye(2)), "not of 192 features"),
        (lambda path: save_pixels(path, np.full(192, np.nan), np.eye(192)), "not finite"),
        (lambda path: save_pixels(path, np.zeros(192), np.triu(np.ones((192, 192)))), "not symmetric"),
        (lambda path: None, "no such file"),
    ],
)
def test_damaged_statistics_are_named(
    tmp_path: Path, given: dict[str, str], write: Any, message: str
) -> None:
    path = tmp_path / "reference.npz"
    write(path)
    with pytest.raises(UserError, match=message):
        run(step(given, bench=("frechet",), reference=str(path)), tmp_path / "report")
    assert not list(tmp_path.glob(".evaluation/*/*.features"))  # told before the long work


def test_everything_that_is_missing_is_told_at_once(tmp_path: Path, given: dict[str, str]) -> None:
    asked = step(given, bench=("fid", "cmmd", "clip"), cmmd_model="nowhere/x/y", clip_model="/no/such/clip")
    with pytest.raises(UserError) as error:
        run_evaluation(asked, tmp_path / "report", Silent())
    lines = str(error.value).splitlines()
    assert lines[0] == "3 things are missing:"
    assert "91 MB" in lines[1]
    assert "nowhere/x/y" in lines[2]
    assert "/no/such/clip" in lines[3]
    assert not (tmp_path / ".evaluation").exists()
