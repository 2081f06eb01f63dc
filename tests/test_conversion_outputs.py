"""Laws of where conversions go: they replace whole folders, so only their own; damage is named."""

import json
from pathlib import Path

import original_layouts as original
import pytest
import torch

from pixart_core.conversion.convert import run_conversion
from pixart_core.conversion.detect import load_any
from pixart_core.errors import UserError
from pixart_core.models.files import load_transformer
from pixart_core.progress import Silent
from pixart_core.recipe.schema import ConvertStep


def convert(source: Path, to: str, output: Path) -> None:
    step = ConvertStep(source=str(source), to=to, num_attention_heads=original.HEADS)
    run_conversion(step, output, Silent())


@pytest.fixture
def pixart_file(tmp_path: Path) -> Path:
    path = tmp_path / "PixArt.pth"
    torch.save({"state_dict": original.make_weights("pixart")}, path)
    return path


def test_a_source_is_never_replaced_by_its_own_conversion(tmp_path: Path, pixart_file: Path) -> None:
    convert(pixart_file, "pixart", tmp_path / "ours")
    with pytest.raises(UserError, match="its own source"):
        convert(tmp_path / "ours", "official", tmp_path / "ours")
    assert load_any(tmp_path / "ours")


def test_a_conversion_replaces_its_own_result_alone(tmp_path: Path, pixart_file: Path) -> None:
    convert(pixart_file, "pixart", tmp_path / "ours")
    convert(pixart_file, "pixart", tmp_path / "ours")
    for name in ("ours", "foreign"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "model_index.json").write_text("{}")
    (tmp_path / "ours/log.jsonl").write_text("{}")
    card = json.loads((tmp_path / "ours/card.json").read_text())
    card["fingerprint"] = "of a training"
    (tmp_path / "ours/card.json").write_text(json.dumps(card))
    for name in ("ours", "foreign"):
        with pytest.raises(UserError, match="not the result of this conversion"):
            convert(pixart_file, "pixart", tmp_path / name)
    assert (tmp_path / "ours/log.jsonl").exists()
    assert (tmp_path / "foreign/model_index.json").exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_of_shards_is_named(tmp_path: Path, pixart_file: Path, text: str) -> None:
    convert(pixart_file, "pixart", tmp_path / "ours")
    (tmp_path / "ours/transformer/diffusion_pytorch_model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        load_transformer(tmp_path / "ours")
