"""The paper's recipe, shrunk: DiT, re-parameterisation, captions, stages 1 to 3, FID, CLIP, T2I-CompBench."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alpha_inputs import LARGE, SMALL, STAGES, write_inputs
from diffusers import PixArtAlphaPipeline
from PIL import Image
from safetensors.torch import load_file

from pixart_cli import app
from pixart_core.recipe.compbench import CATEGORIES

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


class Chain:
    """`pixart run pixart_alpha` with one set of overrides, in one folder."""

    def __init__(self, root: Path, overrides: list[str]) -> None:
        self.root, self.overrides = root, overrides

    def run(self, *more: str) -> str:
        """What it prints on stdout."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
            app.main(["run", "pixart_alpha", *self.overrides, "--output", str(self.root), *more])
        assert not ended.value.code
        return printed.getvalue()

    def weights(self, step: str) -> dict[str, torch.Tensor]:
        return load_file(self.root / step / WEIGHTS)

    def files(self) -> dict[str, int]:
        """When each file was written; scanning for what is missing writes a lock."""
        files = (file for file in self.root.rglob("*") if file.is_file() and file.name != "lock")
        return {str(file): file.stat().st_mtime_ns for file in files}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("inputs")
    return Chain(tmp_path_factory.mktemp("alpha") / "run", write_inputs(folder))


@pytest.fixture(scope="module")
def result(chain: Chain) -> dict[str, Any]:
    """Of the one run that computes."""
    return json.loads(chain.run("--json"))


def test_every_step_runs_and_both_reports_are_there(chain: Chain, result: dict[str, Any]) -> None:
    assert [step["action"] for step in result["steps"].values()] == ["ran"] * 16
    assert result["report"] == str(chain.root / "compbench" / "report.html")
    for step in ("fid", "compbench"):
        page = (chain.root / step / "report.html").read_text()
        assert page.count("Loss over training steps") == len(STAGES)
        # Of so short a run one value was logged, which no line shows.
        assert page.count('<circle class="dot"') == len(STAGES)
        assert (
            json.loads((chain.root / step / "report.json").read_text())["metrics"].items()
            <= result["metrics"].items()
        )


def test_each_stage_starts_from_the_one_before(chain: Chain, result: dict[str, Any]) -> None:
    """Two steps at 2e-5 move no weight by more than 4.1e-5; new weights would be far away."""
    before = chain.weights("reparameterised")
    for stage in STAGES[1:]:
        after = chain.weights(stage)
        shared = {name for name in before if before[name].shape == after.get(name, torch.empty(0)).shape}
        assert len(shared) > 0.9 * len(before)
        moved = {name: (after[name] - before[name]).abs().max().item() for name in shared}
        assert 0 < max(moved.values()) < 4.1e-5
        before = after


def test_the_pipeline_is_the_last_stage_and_an_ordinary_one(chain: Chain, result: dict[str, Any]) -> None:
    last, exported = chain.weights("stage3_1024"), chain.weights("pipeline")
    assert last.keys() == exported.keys()
    assert all(torch.equal(last[name], exported[name]) for name in last)
    pipeline = PixArtAlphaPipeline.from_pretrained(result["pipeline"])
    assert pipeline.transformer.config.sample_size == LARGE // 8
    # diffusers gives the sizes to models of the full 1024 px alone, and runs no other that wants them.
    with pytest.raises(AttributeError):
        pipeline("a red square", num_inference_steps=1, use_resolution_binning=False, clean_caption=False)
    assert "the call above fails" in (chain.root / "pipeline" / "README.md").read_text()


def test_samples_are_drawn_at_the_size_of_their_stage(chain: Chain, result: dict[str, Any]) -> None:
    for step, side, count in (("samples_coco", SMALL, 3), ("samples_compbench", LARGE, 16)):
        rows = [json.loads(line) for line in (chain.root / step / "samples.jsonl").read_text().splitlines()]
        assert len(rows) == count
        pictures = [np.asarray(Image.open(chain.root / step / row["file"])) for row in rows]
        assert {picture.shape for picture in pictures} == {(side, side, 3)}
        assert min(np.ptp(picture) for picture in pictures) > 0


def test_every_score_is_in_the_result_and_in_the_summary(chain: Chain, result: dict[str, Any]) -> None:
    early, late = (result["metrics"][f"stage 3 at {pixels} px"] for pixels in (256, 1024))
    kinds = {name.split("/")[0] for name in early}
    assert kinds == {"frechet", "kernel", "clip"}  # of an Inception that is not FID's own
    assert late["compbench"]["categories"].keys() == set(CATEGORIES)
    assert not any(category["partial"] for category in late["compbench"]["categories"].values())
    told = [line.split() for line in chain.run().splitlines()]
    words = {line[0]: line[1].rstrip(",") for line in told if len(line) > 1}
    for name, found in early.items():
        assert words[name] == (f"{found['value']:.4g}" if "value" in found else f"{found['score']:.3f}")
    for name, found in late["compbench"]["categories"].items():
        assert words[f"compbench/{name}"] == f"{found['score']:.3f}"
    assert ["report:", str(chain.root / "fid" / "report.html")] in told
    assert ["report:", str(chain.root / "compbench" / "report.html")] in told


def test_a_second_run_writes_nothing_but_the_recipe(chain: Chain, result: dict[str, Any]) -> None:
    before = chain.files()
    again = json.loads(chain.run("--json"))
    assert {step["action"] for step in again["steps"].values()} == {"done"}
    assert again["metrics"] == result["metrics"]
    after = chain.files()
    assert {name for name in after if after[name] != before.get(name)} <= {str(chain.root / "recipe.yaml")}


@pytest.mark.parametrize(
    ("change", "reached"),
    [
        ("samples_coco.seed=1", {"samples_coco", "fid"}),
        ("compbench.bootstrap=7", {"compbench"}),
        ("features_hq_1024.storage=fp16",
         {"features_hq_1024", "stage3_1024", "pipeline", "fid", "samples_compbench", "compbench"}),
        ("fid.batch_size=5", set()),
    ],
)  # fmt: skip
def test_a_change_reaches_only_what_depends_on_it(
    chain: Chain, result: dict[str, Any], change: str, reached: set[str]
) -> None:
    plan = json.loads(chain.run("--dry-run", "--json", change))
    assert {step["name"] for step in plan["steps"] if step["action"] != "done"} == reached
    assert plan["missing"] == {}


def test_a_plan_does_not_count_what_will_be_made_again(chain: Chain, result: dict[str, Any]) -> None:
    """Tokens of a picture are those of the features to come: twice the side, four times the tokens."""
    finer = [f"features_imagenet.resolution={2 * SMALL}", f"stage1.model.sample_size={SMALL // 4}"]

    def tokens(*changes: str) -> int:
        plan = json.loads(chain.run("--dry-run", "--json", *changes))
        return {step["name"]: step for step in plan["steps"]}["stage1"]["estimate"]["tokens"]

    assert tokens(*finer) == 4 * tokens() == (2 * SMALL // 16) ** 2
