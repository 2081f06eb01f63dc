"""T2I-CompBench in several goes: caches, processes, kills, the official layout."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compbench_run import SHOWN, make_benchmark, options
from compbench_samples import PROMPTS
from transformers import BertTokenizer

from pixart_core.artifacts.samples import finish_samples
from pixart_core.errors import PixartError, UserError
from pixart_core.evaluation.compbench.answer_cache import AnswerCache
from pixart_core.evaluation.compbench.blip import BlipVqa
from pixart_core.evaluation.compbench.layout import (
    export_official_layout,
    images_of_prompts,
    read_official_layout,
)
from pixart_core.evaluation.compbench.prompts import read_prompts
from pixart_core.evaluation.compbench.score import score_compbench as score_all
from pixart_core.evaluation.sample_set import SampleSet, read_sample_set
from pixart_core.launch import Processes
from pixart_core.progress import Silent
from pixart_core.recipe.compbench import CATEGORIES

HERE = Path(__file__).parent
score_compbench = functools.partial(score_all, device=torch.device("cpu"), batch_size=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compbench")
    make_benchmark(folder)
    return folder


@pytest.fixture(scope="module")
def samples(folder: Path) -> SampleSet:
    return read_sample_set("samples", folder / "samples")


@pytest.fixture(scope="module")
def result(folder: Path, samples: SampleSet) -> dict:
    return score_compbench(samples, options(folder), folder / "cache", Silent())


def test_scores_come_from_the_cache_without_a_model_s_answer(
    folder: Path, samples: SampleSet, result: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(BlipVqa, "answers", answers)
    assert score_compbench(samples, options(folder), folder / "cache", Silent()) == result


def test_two_processes_fill_the_caches_for_the_same_result(
    folder: Path, samples: SampleSet, result: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    given = (samples, options(folder), tmp_path, Silent())
    # As the first process fills its share before it waits, and all of it is known after the wait.
    assert score_compbench(*given, processes=Processes(1, 2)) is None
    second = list(tmp_path.glob("blip*/*.jsonl"))
    assert score_compbench(*given, processes=Processes(0, 2)) == result
    assert len(list(tmp_path.glob("blip*/*.jsonl"))) == 2 == len(second) + 1

    def answers(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(BlipVqa, "answers", answers)
    assert score_compbench(*given) == result


def test_a_limited_set_finds_its_images_under_their_official_names(
    folder: Path, samples: SampleSet, result: dict, tmp_path: Path
) -> None:
    """The set is drawn image by image, so that a limit takes some of every prompt and all numbers change."""
    order = [sample for half in (0, 1) for sample in samples.samples[half::2]]
    write = dataclasses.replace(samples, samples=tuple(order))
    shutil.copytree(folder / "samples", tmp_path / "samples")
    finish_samples(tmp_path / "samples", order, samples.card)
    prompts = read_prompts(str(folder / "prompts"), CATEGORIES)
    found = images_of_prompts(write, prompts)["numeracy"]
    rows = [json.loads(line) for line in (folder / "detections.jsonl").read_text().splitlines()]
    boxes = {row["image"]: row for row in rows if "image" in row}
    drawn = [(entry.prompt, sample) for entry in found for sample in entry.samples]
    named = [
        boxes[sample.file] | {"image": f"{prompt.text}_{index:06d}.png"}
        for index, (prompt, sample) in enumerate(drawn)
    ]
    (tmp_path / "official.jsonl").write_text("\n".join(json.dumps(row) for row in named))
    chosen = options(folder, detections=str(tmp_path / "official.jsonl"), categories=("numeracy",))
    half = read_sample_set("samples", tmp_path / "samples").first(len(order) // 2)
    scored = score_compbench(half, chosen, tmp_path / "cache", Silent())["categories"]["numeracy"]
    assert scored["n"] == 2
    assert scored["score"] == result["categories"]["numeracy"]["score"]


def test_a_dump_that_lacks_an_image_stops_before_the_work(
    folder: Path, samples: SampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlipVqa, "answers", lambda *_: pytest.fail("asked before the dump was looked at"))
    lines = (folder / "detections.jsonl").read_text().splitlines()
    (tmp_path / "cut.jsonl").write_text("\n".join(lines[:-1]))
    last = samples.samples[-1].file
    with pytest.raises(UserError, match=rf"cut\.jsonl has no detections of {last}"):
        score_compbench(
            samples, options(folder, detections=str(tmp_path / "cut.jsonl")), tmp_path / "cache", Silent()
        )


def test_images_in_the_official_layout_score_the_same(
    folder: Path, samples: SampleSet, result: dict, tmp_path: Path
) -> None:
    prompts = read_prompts(str(folder / "prompts"), CATEGORIES)
    export_official_layout(samples, images_of_prompts(samples, prompts), tmp_path / "official")
    imported = read_official_layout("samples", tmp_path / "official")
    # The dump knows the files by their first names; without it what needs no boxes is scored.
    again = score_compbench(imported, options(folder, detections=None), folder / "cache", Silent())
    for name in ("color", "shape", "texture", "non_spatial"):
        for field in ("score", "ci95", "null", "score_minus_null", "protocol"):
            assert again["categories"][name][field] == result["categories"][name][field]


def test_a_killed_run_ends_with_the_same_bytes(folder: Path, tmp_path: Path, result: dict) -> None:
    work = tmp_path / "work"
    shutil.copytree(folder, work, ignore=shutil.ignore_patterns("cache"))

    def run(calls: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, HERE / "compbench_run.py", work, str(calls)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run(4).returncode == -9
    kept = list((work / "cache").glob("blip*/*.jsonl"))
    assert kept
    # What a kill in the middle of writing leaves: a batch without its end.
    with kept[0].open("ab") as file:
        file.write(b'\n\n["0123", "a torn li')
    finished = run(0)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == json.dumps(result, sort_keys=True) + "\n"


def test_answers_of_torn_batches_do_not_count_and_the_first_answer_stays(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, "model")
    cache.append([("a", "q", 0.25), ("b", "q", [1, None])])
    cache.append([("a", "q", 0.5)])
    (own,) = (tmp_path / "model").iterdir()
    with own.open("ab") as file:
        file.write(b'["c", "q", 1]\n["d", "q"')
    again = AnswerCache(tmp_path, "model")
    assert again.answer("a", "q") == 0.25
    assert again.answer("b", "q") == [1, None]
    assert ("c", "q") not in again
    again.append([("e", "q", 3)])
    assert AnswerCache(tmp_path, "model").answer("e", "q") == 3


def test_a_batch_with_a_flipped_bit_does_not_count(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, "model")
    cache.append([("a", "q", 0.25), ("b", "q", 0.5)])
    cache.append([("c", "q", "line\nbreaks\n\n")])
    (own,) = (tmp_path / "model").iterdir()
    whole = own.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        own.write_bytes(damaged)
        again = AnswerCache(tmp_path, "model")
        expected = {("a", "q"): 0.25, ("b", "q"): 0.5, ("c", "q"): "line\nbreaks\n\n"}
        kept = {key: again.answer(*key) for key in expected if key in again}
        assert kept.items() <= expected.items()
        assert len(kept) >= 1


def test_a_cache_that_cannot_be_written_is_a_failure_with_a_name(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, "model")
    shutil.rmtree(cache.folder)
    cache.folder.write_text("in the way")
    with pytest.raises(PixartError, match="cannot write the cache"):
        cache.append([("a", "q", 1)])
    with pytest.raises(UserError, match="cannot be used"):
        AnswerCache(tmp_path, "model")


def test_the_tiny_benchmark_is_one(folder: Path) -> None:
    """Every shown box belongs to a prompt, and the tokenizer knows the words of the questions."""
    assert set(SHOWN) <= {text for texts in PROMPTS.values() for text in texts}
    tokenizer = BertTokenizer.from_pretrained(folder / "bert")
    assert tokenizer("a red chair?")["input_ids"] == [2, 6, 8, 12, 5, 3]
