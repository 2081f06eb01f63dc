"""What a source says of its positions and its model is believed, and checked."""

import json

import original_layouts as original
import pytest
import torch
from diffusers import PixArtTransformer2DModel

from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.conversion.convert import run_conversion
from pixart_core.conversion.detect import load_any
from pixart_core.conversion.infer import Hints
from pixart_core.errors import UserError
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.files import save_transformer
from pixart_core.progress import Silent
from pixart_core.recipe.schema import ConvertStep

HEADS = {"num_attention_heads": original.HEADS}


def convert(source, output, **options):
    return run_conversion(ConvertStep(source=str(source), to="pixart", **options), output, Silent())


def test_a_stored_table_is_believed_against_hints_and_configs(tmp_path) -> None:
    official = original.make_weights("pixart")
    torch.save({"state_dict": official}, tmp_path / "a.pth")
    for hint in ({"sample_size": 16}, {"interpolation_scale": 2.0}):
        (name, value), *_ = hint.items()
        message = rf"pos_embed is for sample_size 8 and position scale 1, not {name} {value:g}; .*positions"
        with pytest.raises(UserError, match=message):
            convert(tmp_path / "a.pth", tmp_path / "out", **hint, **HEADS)
    convert(tmp_path / "a.pth", tmp_path / "agrees", sample_size=8, interpolation_scale=1.0, **HEADS)
    # A file of one resolution that claims to be of another.
    half = TransformerConfig(
        **HEADS, attention_head_dim=6, num_layers=3, sample_size=4, caption_channels=original.CAPTION
    )
    torch.save({"state_dict": official, "pixart": {"config": half.to_diffusers()}}, tmp_path / "b.pth")
    with pytest.raises(
        UserError, match="pos_embed is for sample_size 8 and position scale 1, the config for 4"
    ):
        load_any(tmp_path / "b.pth")
    # The same of a diffusers folder that stores its table.
    model = load_any(tmp_path / "a.pth", Hints(**HEADS)).model
    weights = model.state_dict() | {"pos_embed.pos_embed": official["pos_embed"]}
    save_transformer(model.config, weights, tmp_path / "good")
    assert load_any(tmp_path / "good").model.config.sample_size == 8
    save_transformer(half, weights, tmp_path / "bad")
    with pytest.raises(UserError, match="pos_embed is for sample_size 8"):
        load_any(tmp_path / "bad")


@pytest.mark.parametrize("shape", [(1, 16, 24), (1, 17, 24), (16, 24)])
def test_a_table_of_no_grid_needs_and_takes_the_hint(tmp_path, shape) -> None:
    torch.save(
        {"state_dict": original.make_weights("pixart") | {"pos_embed": torch.randn(shape)}},
        tmp_path / "a.pth",
    )
    with pytest.raises(UserError, match="to use the file without it, give sample_size"):
        load_any(tmp_path / "a.pth", Hints(**HEADS))
    loaded = load_any(tmp_path / "a.pth", Hints(sample_size=16, interpolation_scale=2.0, **HEADS))
    assert (loaded.model.config.sample_size, loaded.model.config.interpolation_scale) == (16, 2.0)
    assert any("no grid's" in note for note in loaded.report.notes)


@pytest.mark.parametrize("sample_size", [32, 64, 128, 192])
def test_an_absent_scale_means_what_diffusers_means(sample_size) -> None:
    config = TransformerConfig(
        **HEADS, attention_head_dim=6, num_layers=1, sample_size=sample_size
    ).to_diffusers()
    del config["interpolation_scale"], config["use_additional_conditions"]
    ours = TransformerConfig.from_diffusers(config)
    theirs = PixArtTransformer2DModel.from_config(config)
    assert ours.use_additional_conditions == theirs.use_additional_conditions
    side = sample_size // 2
    table = build_transformer(ours).pos_embed.positions(side, side, torch.device("cpu"))
    torch.testing.assert_close(table, theirs.pos_embed.pos_embed[0], rtol=0, atol=1e-5)


def test_facts_survive_json_and_a_newer_card_is_named(tmp_path) -> None:
    facts = ModelFacts(
        uncond="learned",
        label_names=("a",),
        trained_sizes=((64, 96), (96, 64)),
        trained_positions=(48, 1.5),
        vae_hash="0123",
        text_encoder_hash="4567",
        vae_scaling_factor=0.5,
    )
    details = json.loads(json.dumps(facts.to_details()))
    assert ModelFacts.from_details(details) == facts
    details["model"] |= {"zoom": 1, "colour": "red"}
    with pytest.raises(UserError, match=r"runs/x was made by pixart 9\.9 .* colour, zoom; upgrade"):
        ModelFacts.from_details(details, "runs/x", "9.9")
    wrong = {
        "uncond": "none",
        "max_tokens": "many",
        "trained_sizes": [[64]],
        "trained_positions": [0, 1],
        "label_names": "ab",
        "vae": None,
        "vae_hash": 1,
        "vae_scaling_factor": "half",
    }
    for name, value in wrong.items():
        with pytest.raises(UserError, match=rf"runs/x: damaged: its card says {name}"):
            ModelFacts.from_details({"model": {name: value}}, "runs/x")
    with pytest.raises(UserError, match="damaged"):
        ModelFacts.from_details({"model": []}, "runs/x")
