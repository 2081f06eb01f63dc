"""Captioning that is killed anywhere, or shared by several processes, ends with the bytes of a whole run."""

import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from broken_images import encode, noise, write_salted_folder
from chat_endpoint import Asked, Endpoint, Reply, describe, serving

from pixart_core.artifacts.captions import read_captions
from pixart_core.recipe.caption import CaptionStep

IMAGES = 14
# Each a launch on the same output: begun so many batches, or calls of that code, it is killed.
KILLED: dict[str, list[int | list[Any]]] = {
    "scanning": [
        [30, "scan_log.py"], [8, "publish.py"], [20, "manifest.py"], [40, "caption_plan.py"],
        [30, "caption_work.py"], [5, "captioner.py"], 1, [12, "caption_parts.py"],
    ],
    "describing": [
        3, [30, "caption_parts.py"], [1, "caption_parts.py", "append", ["return"]], 2,
        [20, "caption_rows.py"], [1, "caption_parts.py", "append", ["return"]],
    ],
    "publishing": [
        [5, "caption_finish.py"], [90, "caption_finish.py"], [5, "publish.py"],
        [3, "publish.py", "staged_file", ["c_call"]], [1, "card.py", "write"],
        [1, "caption_work.py", "clear_parts"],
    ],
}  # fmt: skip
Launch = tuple[str, int, int | list[Any] | None]
LAUNCHES: list[Launch] = [
    *((name, 1, kill) for name, kills in KILLED.items() for kill in [*kills, None, None]),
    ("three", 3, None),
    ("shared", 3, 2), ("shared", 2, 2), ("shared", 2, None),
]  # fmt: skip
Results = dict[str, list[dict[str, Any]]]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def launch_all(step: CaptionStep, folder: Path, launches: list[Launch]) -> Results:
    script = Path(__file__).with_name("caption_launches.py")
    done = subprocess.run(
        [sys.executable, str(script), step.model_dump_json(), str(folder), json.dumps(launches)],
        capture_output=True, text=True, cwd=script.parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
                          "PYTHONPATH": str(script.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results: Results = json.loads(done.stdout.splitlines()[-1])
    return results


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """(folder, results of the launches on each output in it); see caption_launches.py."""
    from tiny_llava import save_tiny_llava

    folder = tmp_path_factory.mktemp("launches")
    step = CaptionStep(
        data=str(write_salted_folder(folder / "salted", good=IMAGES)),
        captioner=str(save_tiny_llava(folder / "llava")), with_original_caption=True,
        max_bad_fraction=0.5, batch_size=2, max_new_tokens=8, device="cpu",
    )  # fmt: skip
    return folder, launch_all(step, folder, LAUNCHES)


@pytest.mark.parametrize("phase", KILLED)
def test_killed_again_and_again_nothing_done_is_done_again_and_the_end_is_the_same(
    launched: tuple[Path, Results], phase: str
) -> None:
    folder, results = launched[0], launched[1][phase]
    assert [result["exit_codes"] for result in results] == [*([[-9]] * len(KILLED[phase])), [0], [0]]
    kept: set[str] = set()
    for result in results[:-2]:
        described = [row_id for batch in result["described"] for row_id in batch]
        assert kept.isdisjoint(described)  # what was kept is never described again
        before, kept = kept, set(result["kept"])
        assert before <= kept or not kept  # no parts are left once all is published
        if kept:
            assert len(set(described) - kept) <= 2  # the batch in flight
    assert results[-1]["described"] == []
    assert contents(folder / phase) == contents(folder / "whole")


def test_kills_fell_before_between_and_after_the_batches(launched: tuple[Path, Results]) -> None:
    kept = {name: [len(result["kept"]) for result in launched[1][name][:-2]] for name in KILLED}
    assert set(kept["scanning"]) == {0}
    assert {0, IMAGES}.isdisjoint(kept["describing"])
    assert len(set(kept["describing"])) >= 4
    assert kept["publishing"][0] == IMAGES


def test_processes_share_the_batches_and_another_number_goes_on_after_a_kill(
    launched: tuple[Path, Results],
) -> None:
    folder, results = launched
    (three,) = results["three"]
    assert three["exit_codes"] == [0, 0, 0]
    assert [len(batch) for batch in three["described"]] == [2] * (IMAGES // 2)
    assert [result["exit_codes"] for result in results["shared"]] == [[-9] * 3, [-9] * 2, [0] * 2]
    assert contents(folder / "three") == contents(folder / "whole") == contents(folder / "shared")


def test_killed_with_requests_under_way_no_answer_that_was_kept_is_asked_for_again(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(IMAGES):
        (images / f"{number:02d}.png").write_bytes(encode(noise(seed=number)))
    ended = threading.Event()
    first: list[str] = []

    def reply(asked: Asked, times: int) -> Reply:
        first[:] = first or [asked.image]
        if times == 2 and asked.image in first:  # once by the undisturbed run, then by the first launch
            ended.wait(600)  # under way when that is killed
        return describe(asked)

    with serving(Endpoint(reply)) as endpoint:
        step = CaptionStep(data=str(images), api_base=endpoint.base, captioner="vlm", concurrency=2)
        kill = [1, "caption_parts.py", "append", ["return"]]
        launches: list[Launch] = [*[("out", 1, kill)] * 5, ("out", 1, None)]
        results = launch_all(step, tmp_path, launches)["out"]
        ended.set()
    assert results[0]["exit_codes"] == [-9]
    assert 0 < len(results[0]["kept"]) < IMAGES
    assert results[-1]["exit_codes"] == [0]
    name = {row.id: row.caption.split()[3] for row in read_captions(tmp_path / "out").values()}
    for result, following in itertools.pairwise(results):
        kept = {name[row_id] for row_id in result["kept"]}
        assert kept.isdisjoint(asked.image for asked in endpoint.asked if asked.time >= following["begin"])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
