"""Laws of `pixart convert --info` on folders: pipelines, shards, checkpoints, trainings, and adapters."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from command_line import shown_info
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from pixart_core.artifacts.card import card_for
from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.conversion.info import describe
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.files import save_transformer
from pixart_core.recipe.schema import ConvertStep
from pixart_core.recipe.training import TrainStep


def small_model(folder: Path, **changes: Any) -> PixArtTransformer2DModel:
    config = {"num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24, "num_layers": 2}
    config |= {"sample_size": 8, "caption_channels": 20, "use_additional_conditions": False}
    model = PixArtTransformer2DModel(**config | changes)
    model.save_pretrained(folder)
    return model


def test_a_pipeline_tells_its_parts_and_pixels(tmp_path: Path) -> None:
    small_model(tmp_path / "transformer")
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(latent_channels=4, block_out_channels=(32, 32), **kinds).save_pretrained(tmp_path / "vae")
    names = {"vae": "AutoencoderKL", "text_encoder": "T5EncoderModel", "tokenizer": "T5Tokenizer"}
    index = {name: ["diffusers", class_] for name, class_ in names.items()}
    index |= {"_class_name": "PixArtAlphaPipeline", "transformer": ["diffusers", "PixArtTransformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    info = describe(tmp_path)
    assert (info["container"], info["missing"]) == ("pipeline", ["text_encoder", "tokenizer"])
    assert (info["resolution"], info["vae_factor"], info["vae"]) == (16, 2, str(tmp_path))


def test_shards_are_counted_and_summed(tmp_path: Path) -> None:
    small_model(tmp_path).save_pretrained(tmp_path / "s", max_shard_size="20KB")
    shards = list((tmp_path / "s").glob("*.safetensors"))
    info = describe(tmp_path / "s")
    assert (info["files"], info["bytes"]) == (len(shards), sum(file.stat().st_size for file in shards))
    assert len(shards) > 1
    assert f"in {len(shards)} files" in shown_info(tmp_path / "s")


def checkpoint(folder: Path, step: Any, **facts: Any) -> None:
    config = TransformerConfig(num_attention_heads=2, attention_head_dim=12, num_layers=1, sample_size=8)
    save_transformer(config, build_transformer(config).state_dict(), folder / "transformer")
    details = ModelFacts(**facts).to_details() | {"steps": 1800, "images": 57_600}
    card_for("checkpoint", step, details).write(folder)


TRAINING = TrainStep(features="f", init="i", max_train_steps=2000, global_batch_size=2, micro_batch_size=2)


def test_a_trained_checkpoint_tells_what_its_card_says(tmp_path: Path) -> None:
    facts = ModelFacts(prediction_type="v_prediction", uncond="learned", max_tokens=77, vae="org/vae")
    checkpoint(tmp_path, TRAINING, **dataclasses.asdict(facts))
    info = describe(tmp_path)
    assert (info["trained"], info["weights_used"]) == ({"steps": 1800, "images": 57_600}, "ema")
    assert (info["prediction_type"], info["max_tokens"], info["vae"]) == ("v_prediction", 77, "org/vae")
    assert info["missing"] == ["uncond.safetensors"]
    assert "1,800" in shown_info(tmp_path)


def test_a_checkpoint_that_was_converted_holds_no_averages(tmp_path: Path) -> None:
    checkpoint(tmp_path, ConvertStep(source="x", to="pixart"))
    assert describe(tmp_path)["weights_used"] == "model"


def test_a_training_that_goes_on_says_so(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    info = describe(tmp_path)
    assert "0 of ? steps" in info["problems"][0]
    (tmp_path / ".run.json").write_text('{"options": {"max_train_steps": 500}}')
    state = tmp_path / "checkpoints" / "step_00000120"
    state.mkdir()
    model = small_model(tmp_path / "elsewhere")
    save_file(model.state_dict(), state / "ema.safetensors")
    info = describe(tmp_path)
    assert info["container"] == "unfinished training"
    assert info["trained"] == {"steps": 120, "max_train_steps": 500}
    assert info["parameters_total"] == sum(parameter.numel() for parameter in model.parameters())
    assert "run it again to continue it" in shown_info(tmp_path, columns=120)


def test_a_lora_adapter_is_told_from_a_model(tmp_path: Path) -> None:
    model = get_peft_model(small_model(tmp_path / "m"), LoraConfig(r=3, target_modules=["to_q", "to_v"]))
    model.save_pretrained(tmp_path / "lora")
    info = describe(tmp_path / "lora")
    layers = 2 * 2 * 2  # blocks, attentions, projections
    assert (info["format"], info["layers_changed"], info["ranks"]) == ("LoRA adapter", layers, [3])
    assert info["parameters_total"] == layers * 3 * (24 + 24)
    assert "LoRA" in shown_info(tmp_path / "lora")
