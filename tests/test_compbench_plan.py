"""`pixart evaluate --bench compbench` with nothing else: what is here, what is missing, what is drawn."""

import json
import os
import shutil
from pathlib import Path

import pytest
from compbench_samples import PROMPTS, write_prompts
from test_sampling import pipeline  # noqa: F401 (a fixture)
from tiny_vision import save_clip
from typer.testing import CliRunner

from pixart_cli.app import app
from pixart_core.artifacts.card import Card
from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.errors import UserError
from pixart_core.evaluation.compbench import availability
from pixart_core.evaluation.compbench.plan import draw_planned, newest_checkpoint, plan_compbench
from pixart_core.progress import Silent
from pixart_core.recipe.compbench import CompBenchOptions


@pytest.fixture
def here(tmp_path: Path, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A working folder with one model below runs/, and no hub."""

    def nowhere(source: str, part: str) -> None:
        raise UserError(f"{part} {source}: the hub cannot give it")

    monkeypatch.setattr(availability, "locate", nowhere)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs/first/pipeline"
    shutil.copytree(pipeline, folder)
    facts = ModelFacts(vae=str(folder), text_encoder=str(folder))
    Card("pipeline", {"command": "convert"}, {}, facts.to_details()).write(folder)
    write_prompts(tmp_path / "prompts")
    save_clip(tmp_path / "clip")
    return tmp_path


def options(**changes: object) -> CompBenchOptions:
    values = {"prompts": "prompts", "clip": "clip", "images_per_prompt": 2, "chunker": "textblob"}
    return CompBenchOptions.model_validate(values | changes)


def plan(**changes: object):
    return plan_compbench(options(**changes), Path("runs"), Path("samples"))


def model(
    folder: Path, kind: str = "checkpoint", name: str = "PixArtTransformer2DModel", age: int = 0
) -> None:
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer/config.json").write_text(json.dumps({"_class_name": name}))
    Card(kind, {}, {}).write(folder)
    seconds = 2_000_000_000 - age  # later than any file that the test really writes
    os.utime(folder / "card.json", (seconds, seconds))


def test_the_newest_finished_text_to_image_model_is_taken(here: Path) -> None:
    assert newest_checkpoint(Path("runs"))[0] == Path("runs/first/pipeline")
    model(here / "runs/older", age=20)
    model(here / "runs/newer/stage2", age=10)
    model(here / "runs/class_conditional", name="DiTTransformer2DModel")
    model(here / "runs/newer/.stage3.partial")
    model(here / "runs/samples", kind="samples")
    model(here / "runs/unfinished")
    (here / "runs/unfinished/card.json").unlink()
    (here / "runs/damaged").mkdir()
    (here / "runs/damaged/card.json").write_text("{")
    assert newest_checkpoint(Path("runs"))[0] == Path("runs/newer/stage2")


def test_without_a_checkpoint_the_message_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train one, or give --samples"):
        newest_checkpoint(tmp_path)


def test_only_what_can_be_scored_is_drawn_and_the_rest_is_listed_with_sizes(here: Path) -> None:
    found = plan()
    assert list(found.prompts) == ["non_spatial"]
    assert found.images == 2 * len(PROMPTS["non_spatial"])
    text = "\n".join(found.lines())
    assert "newest checkpoint: runs/first/pipeline" in text
    assert "BLIP-VQA weights (model_base_vqa_capfilt_large.pth) (1.4 GB), for color, shape, texture" in text
    assert "detections of the official UniDet" in text
    assert "depth model (Intel/dpt-hybrid-midas) (490 MB), for 3d_spatial" in text
    assert not Path("samples").exists()


def test_for_the_official_layout_everything_is_drawn(here: Path) -> None:
    """Its images are wanted before their detections can be there."""
    assert list(plan(official_layout="export").prompts) == list(PROMPTS)


def test_missing_prompts_are_listed_with_the_rest(here: Path) -> None:
    found = plan(prompts=str(here))
    assert [part.part for part in found.missing][:2] == [
        "prompts", "BLIP-VQA weights (model_base_vqa_capfilt_large.pth)",
    ]  # fmt: skip
    assert "before what is missing is here" in "\n".join(found.lines())
    with pytest.raises(UserError, match=r"no category .* prompts; BLIP-VQA weights"):
        draw_planned(found, Silent())


def test_prompts_that_a_folder_lacks_are_missing_for_their_category_alone(here: Path) -> None:
    (here / "prompts/spatial_val.txt").unlink()
    found = plan()
    assert (found.missing[0].part, found.missing[0].categories) == ("prompts", ("spatial",))
    assert "prompts has no spatial_val.txt" in found.missing[0].fix
    assert list(found.prompts) == ["non_spatial"]  # the only one that has its weights, as before
    (here / "prompts/shape_val.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"shape_val.txt: cannot be read as text"):
        plan()


def test_a_wrong_path_of_prompts_is_a_mistake(here: Path) -> None:
    with pytest.raises(UserError, match=r"compbench.prompts: ./promts: no such file or folder"):
        plan(prompts="./promts")


def test_a_limit_takes_the_first_prompts_of_all_categories_alike(here: Path) -> None:
    chosen = options(official_layout="export", images_per_prompt=2)
    found = plan_compbench(chosen, Path("runs"), Path("samples"), limit=32)
    assert {name: [prompt.text for prompt in texts] for name, texts in found.prompts.items()} == {
        name: texts[:2] for name, texts in PROMPTS.items()
    }
    assert found.images == 32
    assert plan_compbench(chosen, Path("runs"), Path("samples"), limit=1).images == 16


def test_samples_of_other_prompts_seeds_or_models_have_another_folder(here: Path) -> None:
    chosen, folders = options(), set()
    for seed in (0, 1):
        folders.add(plan_compbench(chosen, Path("runs"), Path("samples"), seed=seed).samples)
    folders.add(plan(images_per_prompt=3).samples)
    model(here / "runs/newer")
    folders.add(plan().samples)
    assert len(folders) == 4


def test_what_is_drawn_already_is_kept(here: Path) -> None:
    folder = draw_planned(plan(), Silent())
    image = sorted(folder.glob("images/*.png"))[0]
    written = image.stat().st_mtime_ns
    again = plan()
    assert again.there == again.images == 4
    draw_planned(again, Silent())
    assert image.stat().st_mtime_ns == written


def test_the_bare_command_samples_and_scores_what_it_can(here: Path) -> None:
    fields = ["prompts=prompts", "clip=clip", "images_per_prompt=1", "chunker=textblob"]
    command = ["evaluate", "--bench", "compbench", "device=cpu", "--json"]
    command += [f"compbench.{field}" for field in fields]
    planned = CliRunner().invoke(app, [*command, "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["images"] == 2
    assert not Path("samples").exists()

    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    category = json.loads(done.stdout)["metrics"]["first-pipeline"]["compbench"]["categories"]["non_spatial"]
    assert category["n"] == 2
    assert "newest checkpoint: runs/first/pipeline" in done.stderr
    report = json.loads(Path("reports/first-pipeline/report.json").read_text())
    assert "1.4 GB" in json.dumps(report)


def test_other_benchmarks_score_what_was_drawn_for_it_too(here: Path) -> None:
    fields = ["prompts=prompts", "clip=clip", "images_per_prompt=1", "chunker=textblob"]
    command = ["evaluate", "--bench", "compbench", "clip", "clip_model=clip", "--limit", "1", "device=cpu"]
    done = CliRunner().invoke(app, [*command, "--json", *(f"compbench.{field}" for field in fields)])
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout)["metrics"]["first-pipeline"]
    # One image of the two of the category that can be scored.
    assert metrics["clip/clip-cos@1"]["partial"] == metrics["compbench"]["partial"] == {"scored": 1, "of": 2}


def test_other_benchmarks_alone_need_samples(here: Path) -> None:
    for bench in (["shapes"], ["clip"], ["shapes", "compbench"]):
        done = CliRunner().invoke(app, ["evaluate", "--bench", *bench])
        assert done.exit_code == 2
        assert "--samples is missing" in done.stderr


def test_what_other_benchmarks_lack_is_told_before_anything_is_drawn(here: Path) -> None:
    command = ["evaluate", "--bench", "compbench", "fid", "compbench.prompts=prompts", "compbench.clip=clip"]
    done = CliRunner().invoke(app, [*command, "compbench.chunker=textblob"])
    assert done.exit_code == 2
    assert "2 things are missing" in done.stderr
    assert not Path("samples").exists()
