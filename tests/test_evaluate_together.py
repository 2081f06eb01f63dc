"""All benches in one command: every image is read once; kills and processes change no byte of the report."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_blip
from compbench_samples import PROMPTS, write_prompts
from evaluations import evaluate_and_kill, evaluate_as_the_second
from folders import contents
from inception_weights import save_weights
from PIL import Image
from test_report import Page, make_samples
from tiny_detectors import save_dpt, save_owlv2
from tiny_vision import save_clip, save_dinov2

from pixart_core.evaluation import evaluate as front
from pixart_core.evaluation import pictures
from pixart_core.evaluation.evaluate import run_evaluation
from pixart_core.evaluation.sample_set import SampleSet
from pixart_core.progress import Silent
from pixart_core.recipe.compbench import CATEGORIES
from pixart_core.recipe.evaluate import EvaluateStep

EACH = 2  # prompts of a category
Undisturbed = tuple[Path, Counter[str], Counter[str]]
BENCHES = ("shapes", "clip", "fid", "cmmd", "fd-dinov2", "frechet", "compbench")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> EvaluateStep:
    """Shapes under the prompts of all eight categories; every model tiny but Inception."""
    root = tmp_path_factory.mktemp("given")
    prompts = {category: texts[:EACH] for category, texts in PROMPTS.items()}
    write_prompts(root / "prompts", prompts)
    samples = make_samples(root / "new", EACH * len(prompts), spoil=4)
    rows = map(json.loads, (samples / "samples.jsonl").read_text().splitlines())
    texts = [text for some in prompts.values() for text in some]
    lines = [json.dumps(row | {"prompt": text}) + "\n" for row, text in zip(rows, texts, strict=True)]
    (samples / "samples.jsonl").write_text("".join(lines))
    (root / "real").mkdir()
    random = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(random.integers(0, 256, (40, 48, 3), np.uint8)).save(root / f"real/{number}.png")
    tiny_blip.save_official(root / "blip.pth")
    tiny_blip.save_tokenizer(root / "bert")
    compbench = {
        "prompts": str(root / "prompts"),
        "blip": str(root / "blip.pth"),
        "blip_tokenizer": str(root / "bert"),
        "clip": str(save_clip(root / "clip")),
        "detector": "owlv2",
        "detector_model": str(save_owlv2(root / "owl")),
        "detector_threshold": 0.0,
        "depth": str(save_dpt(root / "dpt")),
        "images_per_prompt": 1,
        "chunker": "textblob",
    }
    values: dict[str, Any] = {
        "bench": BENCHES,
        "samples": {"new": str(samples)},
        "reference": str(root / "real"),
        "inception": str(save_weights(root / "formula.pth")),
        "clip_model": compbench["clip"],
        "cmmd_model": compbench["clip"],
        "dinov2_model": str(save_dinov2(root / "dinov2")),
        "compbench": compbench,
        "save_statistics": True,
        "batch_size": 5,
        "bootstrap": 20,
        "device": "cpu",
    }
    return EvaluateStep.model_validate(values)


@pytest.fixture(scope="module")
def undisturbed(asked: EvaluateStep, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """(report, how often each image was read, and decoded, before the page was written)."""
    output = tmp_path_factory.mktemp("undisturbed") / "report"
    read, decoded = Counter[str](), Counter[str]()
    counting = [True]
    with pytest.MonkeyPatch.context() as patch:

        def counted(name: str, counter: Counter[str]) -> None:
            whole = getattr(SampleSet, name)

            def call(self: SampleSet, sample: Any, *args: Any) -> Any:
                if counting[0]:
                    counter[sample.file] += 1
                return whole(self, sample, *args)

            patch.setattr(SampleSet, name, call)

        def written(*args: Any) -> None:
            counting[0] = False
            write_report(*args)

        write_report = front.write_report
        patch.setattr(front, "write_report", written)
        counted("read", read)
        counted("decode", decoded)
        run_evaluation(asked, output, Silent())
    return output, read, decoded


def test_every_image_is_read_and_decoded_once_for_all_benches(
    asked: EvaluateStep, undisturbed: Undisturbed
) -> None:
    output, read, decoded = undisturbed
    metrics = json.loads((output / "report.json").read_text())["metrics"]["new"]
    assert set(metrics["compbench"]["categories"]) == set(CATEGORIES)
    kinds = {name.split("/")[0] for name in metrics}
    assert kinds == {"shapes", "clip", "frechet", "kernel", "cmmd", "fd-dinov2", "compbench"}
    files = {f"images/{number:06d}.png" for number in range(EACH * len(CATEGORIES))}
    assert read == decoded == Counter(files)


def test_what_is_known_is_not_even_decoded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: EvaluateStep,
    undisturbed: Undisturbed,
) -> None:
    benches = tuple(bench for bench in BENCHES if bench != "shapes")  # detectors of shapes keep nothing
    again = asked.model_copy(update={"bench": benches, "cache": str(undisturbed[0].parent / ".evaluation")})
    monkeypatch.setattr(pictures, "decode_image", lambda _: pytest.fail("decoded again"))
    monkeypatch.setattr(SampleSet, "decode", lambda *_: pytest.fail("decoded again"))
    monkeypatch.setattr(front, "write_report", lambda *_: None)
    metrics = run_evaluation(again, tmp_path / "report", Silent())["metrics"]["new"]
    before = json.loads((undisturbed[0] / "report.json").read_text())["metrics"]["new"]
    assert json.loads(json.dumps(metrics)) == {name: before[name] for name in before if name != "shapes"}


def test_an_evaluation_killed_twice_ends_with_the_same_folder(
    tmp_path: Path, asked: EvaluateStep, undisturbed: Undisturbed
) -> None:
    output = tmp_path / "report"
    for batch in (9, 11):  # among features, then among answers
        evaluate_and_kill(asked, output, batch)
    assert list((tmp_path / ".evaluation").glob("*/*.answers.jsonl"))
    run_evaluation(asked, output, Silent())
    assert contents(output) == contents(undisturbed[0])


def test_two_processes_end_with_the_same_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: EvaluateStep,
    undisturbed: Undisturbed,
) -> None:
    output = tmp_path / "report"
    evaluate_as_the_second(asked, output, monkeypatch)
    run_evaluation(asked, output, Silent())
    assert contents(output) == contents(undisturbed[0])


def test_the_page_of_everything_loads_nothing_and_shows_each_protocol_once(
    undisturbed: Undisturbed,
) -> None:
    folder = undisturbed[0]
    page = Page((folder / "report.html").read_text())
    assert "script" not in page.tags
    assert all(address.startswith("data:image/") for address in page.addresses)
    metrics = json.loads((folder / "report.json").read_text())["metrics"]["new"]
    categories = metrics.pop("compbench")["categories"]
    protocols = {*metrics, *(result["protocol"] for result in categories.values())} - {"shapes"}
    assert {"report.json", "report.html", "report.md", "card.json"} < set(contents(folder))
    assert sorted(p for p in protocols if p not in page.text) == []
