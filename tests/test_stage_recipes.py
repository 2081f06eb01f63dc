"""The paper's stages as recipes: their rows of Table 4, their sums, and what they need."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pixart_cli import app
from pixart_core.artifacts.card import Card
from pixart_core.recipe.costs import implied_mfu, total_cost
from pixart_core.recipe.estimate import estimate_training
from pixart_core.recipe.find import bundled_recipes, find_recipe
from pixart_core.recipe.load import load_recipe
from pixart_core.recipe.needs import missing_inputs
from pixart_core.recipe.schema import Recipe
from pixart_core.recipe.training import ModelOptions, TrainStep

# Table 4 of the paper: px, thousands of steps, batch a GPU, GPUs, V100-days.
TABLE_4 = {
    "stage1": (256, 300, 128, 8, 88),
    "stage2": (256, 150, 178, 64, 672),
    "stage3_256": (256, 90, 178, 64, 416),
    "stage3_512": (512, 100, 40, 64, 320),
    "stage3_1024": (1024, 16, 12, 32, 160),
}


@pytest.fixture(autouse=True)
def nothing_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test is in an empty folder: what a checkout happens to hold does not count."""
    monkeypatch.chdir(tmp_path)


def stage(name: str) -> tuple[TrainStep, dict[str, Any]]:
    """The train step of a bundled stage, and its estimate in an empty folder."""
    recipe = load_recipe(name)
    step = recipe.steps[name]
    assert isinstance(step, TrainStep)
    return step, estimate_training(step, name, recipe, Path("/nowhere"))


def pixart(*args: str) -> int:
    """Exit code of the command line."""
    with pytest.raises(SystemExit) as ended:
        app.main(list(args))
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", TABLE_4)
def test_a_stage_is_its_row_of_table_4(name: str) -> None:
    pixels, thousands, each, gpus, _ = TABLE_4[name]
    step, _ = stage(name)
    assert step.max_train_steps == 1000 * thousands
    assert (step.micro_batch_size, step.global_batch_size) == (each, each * gpus)
    assert (step.learning_rate, step.lr_scheduler, step.ema_decay) == (2e-5, "constant", 0.9999)
    assert (step.optimizer.kind, step.optimizer.weight_decay) == ("adamw", 0.03)
    side = (step.positions or step.model or ModelOptions()).sample_size
    assert 8 * side == pixels
    micro = bool(step.positions and step.positions.use_additional_conditions)
    assert micro == (pixels == 1024)


def test_the_stages_add_up_to_the_papers_sums() -> None:
    total = total_cost([stage(name)[1] for name in TABLE_4], load_recipe("stage1").plan)
    assert total["images"] == 3_303_424_000
    assert f"{total['training_flops']:.2e}" == "3.73e+21"
    assert total["published"]["gpu"] == "V100"
    assert total["published"]["gpu_days"] == 1656
    assert round(implied_mfu(total["training_flops"], "A100", 753), 3) == 0.184
    assert round(1656 / 2.2) == 753  # the paper's footnote 3


@pytest.mark.parametrize("name", TABLE_4)
def test_the_head_of_a_stage_tells_what_the_planner_says(name: str) -> None:
    _, known = stage(name)
    head = find_recipe(name).read_text().split("\nname:")[0]
    days, dollars = re.findall(r"expected +([\d.]+) A100-days, about ([\d,]+) USD", head)[0]
    assert float(days) == round(known["gpu_days"], 1)
    assert float(dollars.replace(",", "")) == pytest.approx(known["usd"], abs=5.01)
    assert f"which imply {known['published']['mfu']:.1%}".replace("%", " %") in head
    assert f"{TABLE_4[name][4]} V100-days" in head


@pytest.mark.parametrize("given", ["stage3", "stage3.yaml", "stage3_1024"])
def test_a_stage_is_found_from_any_folder_and_names_what_makes_its_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["train", "--recipe", given], ["run", given]):
        assert pixart(*command) == 2
        told = capsys.readouterr().err
        assert "make it with: pixart extract-features --data hq" in told
        assert "make it with: pixart train --recipe stage3_512" in told
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs" / "stage3_512" / "checkpoints").mkdir(parents=True)  # of a run that is not finished
    (tmp_path / "features" / "hq_1024").mkdir(parents=True)
    Card("features", {}, {}).write(tmp_path / "features" / "hq_1024")
    assert pixart("train", "--recipe", given) == 2
    told = capsys.readouterr().err
    assert "make it with: pixart train --recipe stage3_512" in told
    assert "hq_1024 is missing" not in told
    Card("checkpoint", {}, {}).write(tmp_path / "runs" / "stage3_512")
    recipe = load_recipe(given)
    assert missing_inputs(recipe, recipe.steps["stage3_1024"]) == {}


def test_the_whole_method_is_its_stages_in_one_chain() -> None:
    chain = load_recipe("pixart_alpha")
    where = {"features", "init"}
    for name in TABLE_4:
        step = chain.steps[name]
        assert step.model_dump(exclude=where) == stage(name)[0].model_dump(exclude=where)
        assert chain.plan.steps[name] == load_recipe(name).plan.steps[name]
    benches = [bench for step in chain.steps.values() for bench in getattr(step, "bench", ())]
    assert benches == ["fid", "clip", "compbench"]


def test_the_plan_of_the_whole_method_is_the_papers_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    assert pixart("run", "pixart_alpha", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    total = plan["total"]
    assert total["images"] == 3_303_424_000
    assert f"{total['training_flops']:.2e}" == "3.73e+21"
    assert (total["published"]["gpu"], total["published"]["gpu_days"]) == ("V100", 1656)
    head = find_recipe("pixart_alpha").read_text().split("\nname:")[0]
    assert f"{total['gpu_days']} A100-days" in head
    assert f"{total['usd']:,.0f} USD" in head
    assert f"imply {total['published']['mfu']:.1%} MFU".replace("%", " %") in head
    needs = load_recipe("pixart_alpha").needs
    assert plan["missing"] == needs
    for name in needs:  # whatever is there is not missing
        Path(name).mkdir()
    assert pixart("run", "pixart_alpha", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["missing"] == {}


def test_what_the_whole_method_needs_is_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pixart("run", "pixart_alpha") == 2
    told = capsys.readouterr().err
    for name, words in load_recipe("pixart_alpha").needs.items():
        assert f"{name} is missing: {words}" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "there"),
    [("fid.inception=x.pth", False), ("captions.data=x", False), ("features_sam.vae=some/where/vae", False),
     ("compbench.compbench.blip=./blip", False), ("samples_coco.prompts_file=x.txt", False),
     ("features_sam.vae=some/vae", True), ("captions.data=hf:some/images", True),
     ("stage2.init={step: reparameterised}", True)],
)  # fmt: skip
def test_a_wrong_path_is_told_before_anything_runs(
    capsys: pytest.CaptureFixture[str], wrong: str, there: bool
) -> None:
    """What may be of the hub is not one; what a step makes is not missing."""
    for name in load_recipe("pixart_alpha").needs:
        Path(name).mkdir()
    assert pixart("run", "pixart_alpha", wrong, "--output", "out", "--dry-run", "--json") == 0
    option, _, path = wrong.partition("=")
    told = {} if there else {path: f"no such file or folder, named by {option}"}
    assert json.loads(capsys.readouterr().out)["missing"] == told
    if not there:
        assert pixart("run", "pixart_alpha", wrong, "--output", "out") == 2
        assert f"{path} is missing: no such file or folder, named by {option}" in capsys.readouterr().err
        assert not Path("out").exists()


def test_the_released_dit_stands_in_for_stage_1_as_the_recipe_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither ImageNet nor its curve is asked for; a step that scores depend on still is."""
    head = find_recipe("pixart_alpha").read_text().split("\nname:")[0]
    (command,) = re.findall(r"pixart (run pixart_alpha --from .*)", head)
    dit = command.rpartition("=")[2]
    for name in {*load_recipe("pixart_alpha").needs, dit} - {"imagenet"}:
        Path(name).touch()
    assert pixart(*command.split(), "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    steps = {step["name"]: step for step in plan["steps"]}
    assert plan["missing"] == {}
    assert {name for name in steps if steps[name]["action"] == "skip"} == {"features_imagenet", "stage1"}
    for name in ("fid", "compbench"):
        assert len(steps[name]["options"]["runs"]) == len(TABLE_4) - 1
        assert steps[name]["reason"].endswith("without the curve of stage1, not done")
    assert pixart("run", "pixart_alpha", "--only", "fid", "--dry-run") == 2
    assert "step fid needs samples_coco" in capsys.readouterr().err


def test_the_plan_counts_the_images_that_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Rather than believe the recipe's number; and takes the sizes that the features will have."""
    for number in range(3):
        Path(f"{number}.png").touch()
    overrides = ["features_hq_1024.data=.", "features_hq_1024.resolution=128"]
    overrides.append("features_hq_1024.aspect_buckets=[[128, 128]]")
    assert pixart("run", "pixart_alpha", *overrides, "--dry-run", "--json") == 0
    steps = {step["name"]: step["estimate"] for step in json.loads(capsys.readouterr().out)["steps"]}
    assert steps["stage3_1024"]["samples"] == 3
    assert steps["stage3_512"]["samples"] == 14_000_000


def test_features_of_any_recipe_are_named_with_their_command(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text("{}")
    common = {"max_train_steps": 1, "global_batch_size": 1, "micro_batch_size": 1, "command": "train"}
    step = common | {"features": "f", "init": str(tmp_path)}
    recipe = Recipe.model_validate({"name": "x", "needs": {str(tmp_path): "unused"}, "steps": {"t": step}})
    missing = missing_inputs(recipe, recipe.steps["t"])
    assert missing == {"f": "pixart extract-features --data DATA --output f"}


@pytest.mark.parametrize("name", sorted(bundled_recipes()))
def test_commands_that_recipes_name_make_what_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    sources = {str(getattr(step, f, "")) for step in recipe.steps.values() for f in ("features", "init")}
    commands = {path: origin for path, origin in recipe.needs.items() if origin.startswith("pixart ")}
    assert set(commands) <= sources
    for path, command in commands.items():
        words = command.split()
        assert pixart(*words[1:], "--dry-run", "--json") == 0
        assert json.loads(capsys.readouterr().out)["output"] == path
