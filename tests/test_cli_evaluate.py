"""`pixart evaluate`: what its flags ask for, a curve over guidance scales, and how scores are told."""

import json
from pathlib import Path

import pytest
from command_line import pixart
from faked_runners import METRICS, Calls, fake_runners, write_recipe


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_recipe(tmp_path, monkeypatch)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return fake_runners(monkeypatch)


def test_samples_may_be_named(here: Path, calls: Calls) -> None:
    assert pixart("evaluate", "--samples", "new=b/1", "--samples", "a/old", "--bench", "shapes,frechet") == 0
    assert calls[0][0].samples == {"new": "b/1", "old": "a/old"}
    assert calls[0][0].bench == ("shapes", "frechet")


def test_several_benches_follow_one_flag(here: Path, calls: Calls) -> None:
    args = ["--bench", "fid", "clip", "inception=w.pth", "compbench", "shapes", "--samples", "a/x"]
    assert pixart("evaluate", *args, "--limit", "5", "--reference", "real") == 0
    assert calls[0][0].bench == ("fid", "clip", "compbench", "shapes")
    assert (calls[0][0].inception, calls[0][0].limit) == ("w.pth", 5)


def test_scores_are_lines_for_a_person_and_everything_with_json(
    here: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pixart("evaluate", "--samples", "a/x", "--output", "told") == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "new",
        "  shapes/exact        0.500, +0.400 [+0.250, +0.500] against its null (4 of 9 samples)",
        "  fid/x@1             12.35 ± 0.50",
        "  kid/x@1             -0.000120 ± 0.000030",
        "  clip/x@1            0.300, without a null",
        "  compbench/numeracy  0.250, +0.100 against its null (partial)",
    ]
    assert pixart("evaluate", "--samples", "a/x", "--output", "told", "--json") == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == METRICS


@pytest.fixture
def weights_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixart_core.evaluation.networks.check_networks", lambda _: None)


@pytest.mark.usefixtures("weights_are_here")
def test_a_curve_draws_each_scale_with_one_seed_and_scores_them_together(here: Path, calls: Calls) -> None:
    args = ["--curve", "3,1.5", "--checkpoint", "runs/x", "--prompts", "recipe.yaml", "--seed", "7"]
    assert pixart("evaluate", *args, "--bench", "clip", "fid", "--reference", "r", "inception=w") == 0
    *drawn, (scored, _) = [call[:2] for call in calls]
    assert [(step.guidance_scale, step.seed) for step, _ in drawn] == [(1.5, 7), (3, 7)]
    assert scored.samples == {f"guidance {step.guidance_scale:g}": str(output) for step, output in drawn}


def test_what_an_evaluation_lacks_is_told_before_its_samples_are_drawn(
    here: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [
        "--curve",
        "3,1.5",
        "--checkpoint",
        "runs/x",
        "--prompts",
        "recipe.yaml",
        "--bench",
        "fid",
        "cmmd",
    ]
    assert pixart("evaluate", *args, "--reference", "r", "inception=w", "cmmd_model=/no/clip") == 2
    told = capsys.readouterr().err
    assert "3 things are missing" in told
    assert all(part in told for part in ("no such file or folder r", "no such file w", "/no/clip"))
    assert not calls


@pytest.mark.usefixtures("weights_are_here")
def test_a_curve_over_the_first_prompts_knows_of_how_many(here: Path, calls: Calls) -> None:
    (here / "prompts.jsonl").write_text(
        '{"prompt": "a", "ar": "3:4"}\n{"prompt": "b", "images_per_prompt": 3}\n{"prompt": "c"}\n'
    )
    args = ["--curve", "3,1.5", "--checkpoint", "runs/x", "--prompts", "prompts.jsonl", "--limit", "2"]
    assert pixart("evaluate", *args, "--bench", "clip") == 0
    *drawn, (scored, _) = [call[:2] for call in calls]
    assert [step.limit for step, _ in drawn] == [2, 2]
    assert scored.limit is None
    assert scored.whole == {"guidance 1.5": 5, "guidance 3": 5}
