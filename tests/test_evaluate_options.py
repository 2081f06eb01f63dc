"""Cards of evaluations: no paths, and other files within the options make another evaluation; dry runs."""

import json
from pathlib import Path

import pytest
from test_report import make_samples

from pixart_core.artifacts.card import card_for
from pixart_core.errors import UserError
from pixart_core.evaluation.evaluate import plan_evaluation
from pixart_core.recipe.evaluate import EvaluateStep


def card_text(folder: Path, **compbench: object) -> str:
    (folder / "samples").mkdir(exist_ok=True)
    step = EvaluateStep.model_validate(
        {"bench": ["compbench"], "samples": {"a": str(folder / "samples")}, "compbench": compbench}
    )
    card = card_for("report", step, {})
    return json.dumps([dict(card.options), dict(card.inputs)], sort_keys=True)


def test_options_within_a_step_keep_paths_out_of_its_card(tmp_path: Path) -> None:
    detections = tmp_path / "detections.jsonl"
    detections.write_text("{}\n")
    text = card_text(tmp_path, detections=str(detections), prompts=str(tmp_path), official_layout="/out")
    assert str(tmp_path) not in text
    assert "/out" not in text
    assert '"compbench.clip": "id:openai/clip-vit-base-patch32"' in text


def test_another_file_behind_an_option_is_another_evaluation(tmp_path: Path) -> None:
    detections = tmp_path / "detections.jsonl"
    detections.write_text("{}\n")
    before = card_text(tmp_path, detections=str(detections))
    assert card_text(tmp_path, detections=str(detections)) == before
    detections.write_text("{}\n{}\n")
    assert card_text(tmp_path, detections=str(detections)) != before


def test_what_changes_no_number_changes_no_card(tmp_path: Path) -> None:
    def text(**options: object) -> str:
        step = EvaluateStep.model_validate({"samples": {"a": "b"}} | options)
        return card_for("report", step, {}).text()

    assert text() == text(batch_size=3, device="cpu", cache=str(tmp_path))
    assert text() != text(limit=3)


def test_a_dry_run_counts_images_and_refuses_what_the_run_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("asked the hub"))
    samples = str(make_samples(tmp_path / "samples", 4))

    def plan(**options: object) -> dict:
        return plan_evaluation(EvaluateStep.model_validate({"samples": {"a": samples}} | options))

    assert plan() == {"images": {"a": 4}}
    assert plan(limit=3) == {"images": {"a": 3}}
    with pytest.raises(UserError) as error:
        plan(bench=("frechet", "fid", "clip"), reference="no/where", clip_model="/no/clip", inception="w.pth")
    assert str(error.value).splitlines()[0] == "3 things are missing:"
    with pytest.raises(UserError, match="other is not a folder"):
        plan(samples={"a": "other"})
    blind = str(make_samples(tmp_path / "blind", 4, truth=False))
    with pytest.raises(UserError, match="has no ground truth"):
        plan(samples={"a": blind})
    parts = plan(
        bench=("compbench",), compbench={"categories": ("color",), "chunker": "textblob", "blip": None}
    )
    assert [part["size"] for part in parts["missing"]] == ["1.4 GB"]
    assert not list(tmp_path.rglob(".evaluation"))
