"""All benches in one command: every image is read once; kills and processes change no byte of the report."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_blip
from compbench_samples import PROMPTS, write_prompts
from inception_weights import save_weights
from PIL import Image
from test_report import Page, make_samples
from tiny_detectors import save_dpt, save_owlv2
from tiny_vision import save_clip, save_dinov2

from pixart_core.evaluation import evaluate as front
from pixart_core.evaluation import pictures
from pixart_core.evaluation.evaluate import run_evaluation
from pixart_core.evaluation.sample_set import SampleSet
from pixart_core.launch import Processes
from pixart_core.progress import Silent
from pixart_core.recipe.compbench import CATEGORIES
from pixart_core.recipe.evaluate import EvaluateStep

EACH = 2  # prompts of a category
Undisturbed = tuple[Path, Counter[str], Counter[str]]
BENCHES = ("shapes", "clip", "fid", "cmmd", "fd-dinov2", "frechet", "compbench")

# Dies at the `count`-th batch that any model has seen, when half of what it found is written.
KILLED = """
import os, pathlib, signal, sys
from pixart_core.evaluation import feature_cache
from pixart_core.evaluation.compbench import answer_cache
from pixart_core.evaluation.evaluate import run_evaluation
from pixart_core.progress import Silent
from pixart_core.recipe.evaluate import EvaluateStep
calls, count = [], int(sys.argv[3])

def cut(kind, name):
    whole = getattr(kind, name)
    def append(self, *args):
        calls.append(1)
        whole(self, *args)
        if len(calls) == count:
            os.truncate(self._own, self._own.stat().st_size - 10)
            os.kill(os.getpid(), signal.SIGKILL)
    setattr(kind, name, append)

cut(feature_cache.FeatureCache, "append")
cut(answer_cache.AnswerCache, "append")
run_evaluation(EvaluateStep.model_validate_json(sys.argv[1]), pathlib.Path(sys.argv[2]), Silent())
"""


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


def content(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


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
    for count in ("9", "11"):  # among features, then among answers
        arguments = [sys.executable, "-c", KILLED, asked.model_dump_json(), str(output), count]
        child = subprocess.run(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
        assert child.returncode == -signal.SIGKILL
        assert not (output / "report.json").exists()
    assert list((tmp_path / ".evaluation").glob("*/*.answers.jsonl"))
    run_evaluation(asked, output, Silent())
    assert content(output) == content(undisturbed[0])


def test_two_processes_end_with_the_same_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: EvaluateStep,
    undisturbed: Undisturbed,
) -> None:
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    output = tmp_path / "report"
    # The scan of the reference is the first process's work, for which the second waits.
    run_evaluation(asked.model_copy(update={"bench": ("frechet",)}), tmp_path / "scan", Silent())
    monkeypatch.setattr(front, "connect", lambda: Processes(rank=1, count=2))
    assert run_evaluation(asked, output, Silent()) == {"output": str(output)}
    assert not (output / "report.json").exists()
    monkeypatch.setattr(front, "connect", lambda: Processes(rank=0, count=2))
    run_evaluation(asked, output, Silent())
    assert content(output) == content(undisturbed[0])


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
    assert {"report.json", "report.html", "report.md", "card.json"} < set(content(folder))
    assert sorted(p for p in protocols if p not in page.text) == []
