"""Another resolution for the same weights: what is exact, what is drawn, what is refused."""

import json

import original_layouts as original
import pytest
import torch
from diffusers import PixArtTransformer2DModel
from pydantic import ValidationError

from pixart_core.artifacts.card import read_card
from pixart_core.conversion.convert import run_conversion
from pixart_core.conversion.detect import load_any
from pixart_core.conversion.infer import Hints
from pixart_core.errors import UserError
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.files import load_transformer
from pixart_core.models.resolution import Resolution, change_resolution, position_range, released_resolution
from pixart_core.progress import Silent
from pixart_core.recipe.schema import ConvertStep

HEADS = {"num_attention_heads": original.HEADS}
SIZES = {"resolution": torch.tensor([[512.0, 640.0]] * 2), "aspect_ratio": torch.tensor([[0.8]] * 2)}


def random_model(**changes):
    options = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "caption_channels": 8}
    model = build_transformer(TransformerConfig(**(options | changes)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    return model.eval()


def run(model, side, **conditions):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, side, side, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([7, 900]), torch.randn(2, 5, 8, generator=generator), **conditions)


def released(model, pixels):
    return change_resolution(model, released_resolution(pixels))


def grid(model, side):
    """The position table as (rows, columns, width)."""
    return model.pos_embed.positions(side, side, torch.device("cpu")).view(side, side, -1)


@pytest.mark.parametrize(("pixels", "tokens", "scale"), [(256, 16, 1.0), (512, 32, 1.0), (1024, 64, 2.0)])
def test_a_released_resolution_has_the_original_position_table(pixels, tokens, scale) -> None:
    model = released(random_model(), pixels)
    expected = original.position_table(24, tokens, tokens, scale)[0]
    torch.testing.assert_close(grid(model, tokens).flatten(0, 1), expected, rtol=0, atol=1e-5)
    assert model.config.use_additional_conditions == (pixels == 1024)


def test_512_continues_the_positions_of_256_and_1024_halves_the_steps_of_512() -> None:
    base = random_model()
    small, middle, large = (grid(released(base, p), p // 16) for p in (256, 512, 1024))
    assert torch.equal(middle[:16, :16], small)
    assert torch.equal(large[::2, ::2], middle)
    # Interpolated instead, every second patch of the 512 grid lies where the 256 grid has one.
    interpolated = grid(change_resolution(base, Resolution(64, 2.0)), 32)
    assert torch.equal(interpolated[::2, ::2], small)
    # What is not exact: the old grid is spread over the new range, and the new places were never seen.
    assert torch.equal(grid(released(base, 512), 16), middle[::2, ::2])
    assert not torch.allclose(grid(released(base, 512), 16), small, atol=0.5)


def test_only_the_range_of_the_positions_matters_on_equal_latents() -> None:
    base = random_model()
    before = {side: run(base, side) for side in (32, 48)}
    for sample_size, scale in ((64, 2.0), (48, 1.5), (16, 0.5)):
        assert position_range(sample_size, 2, scale) == position_range(32, 2, 1.0) == 16
        changed = change_resolution(base, Resolution(sample_size, scale))
        for side, output in before.items():
            error = (run(changed, side) - output).abs().max() / output.abs().max()
            # Powers of two divide exactly; by 1.5 the positions round.
            assert error == 0 if scale != 1.5 else error < 1e-5
    assert (run(released(base, 512), 32) - before[32]).abs().max() > 0.1 * before[32].abs().max()


@pytest.mark.parametrize("modulation", ["adaln_single", "adaln"])
def test_adding_micro_conditions_changes_no_bit(modulation) -> None:
    base = random_model(modulation=modulation)
    micro = change_resolution(base, Resolution(32, use_additional_conditions=True))
    for sizes in (SIZES, {name: 3 * value for name, value in SIZES.items()}):
        assert torch.equal(run(micro, 32, **sizes), run(base, 32))
    # They are not dead: the last layer has a gradient, and after a step the first one too.
    latents, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8)
    by_name = dict(micro.train().named_parameters())
    first, last = (
        next(p for name, p in by_name.items() if f"resolution_embedder.linear_{layer}.weight" in name)
        for layer in (1, 2)
    )
    for moved in (False, True):
        micro.zero_grad()
        micro(latents, torch.tensor([7, 900]), text, **SIZES).square().mean().backward()
        assert last.grad.abs().max() > 0
        assert (first.grad.abs().max() > 0) == moved
        with torch.no_grad():
            last -= 0.1 * last.grad


def test_from_256_to_1024_with_micro_conditions_is_exact_where_the_positions_are() -> None:
    base = random_model()
    direct = released(base, 1024)
    assert torch.equal(run(direct, 32, **SIZES), run(released(base, 512), 32))


def test_weights_are_shared_and_only_the_size_embedders_are_drawn() -> None:
    base = random_model()
    before = torch.get_rng_state()
    changed = change_resolution(base, released_resolution(1024), seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    new = set()
    for name, tensor in changed.state_dict().items():
        if name in base.state_dict():
            assert tensor.data_ptr() == base.state_dict()[name].data_ptr(), name
        else:
            new.add(name)
    parts = [f"linear_{n}.{p}" for n in (1, 2) for p in ("weight", "bias")]
    embedders = ("resolution_embedder", "aspect_ratio_embedder")
    assert new == {f"adaln_single.emb.{embedder}.{part}" for embedder in embedders for part in parts}
    assert all(parameter.requires_grad for parameter in changed.parameters())

    torch.randn(5)
    again, other = (change_resolution(base, released_resolution(1024), seed=seed) for seed in (3, 4))
    first = "adaln_single.emb.resolution_embedder.linear_1.weight"
    assert torch.equal(changed.state_dict()[first], again.state_dict()[first])
    assert not torch.equal(changed.state_dict()[first], other.state_dict()[first])
    std = changed.state_dict()[first].std()
    assert 0.8 / 16 < std < 1.2 / 16  # 1 / sqrt(256 channels)


def test_what_a_model_cannot_become_is_one_clear_error() -> None:
    micro = released(random_model(), 1024)
    with pytest.raises(UserError, match="cannot be taken away"):
        released(micro, 512)
    assert change_resolution(micro, Resolution(64)).config.use_additional_conditions
    with pytest.raises(UserError, match="class-conditional DiT has none"):
        released(random_model(conditioning="class"), 1024)
    with pytest.raises(UserError, match="width that 3 divides"):
        released(random_model(attention_head_dim=8), 1024)
    with pytest.raises(UserError, match="not a multiple of patch"):
        change_resolution(random_model(), Resolution(33))
    with pytest.raises(UserError, match="512 is not a multiple of 24"):
        released_resolution(512, 24)
    assert released_resolution(512, 4) == Resolution(128, 1.0, False)


def convert(source, output, to="pixart", **options):
    return run_conversion(ConvertStep(source=str(source), to=to, **options), output, Silent())


@pytest.fixture(params=["official", "transformer folder", "checkpoint"])
def small(request, tmp_path):
    """A PixArt for 64 px pictures (latents of 8), in each layout; (source, options it needs, its weights)."""
    path = tmp_path / "PixArt.pth"
    torch.save({"state_dict": original.make_weights("pixart")}, path)
    weights = load_any(path, Hints(**HEADS)).model.state_dict()
    if request.param == "official":
        return path, HEADS, weights
    convert(path, tmp_path / "ours", **HEADS)
    return tmp_path / "ours" / ("transformer" if "folder" in request.param else ""), {}, weights


def test_convert_changes_positions_and_says_from_what(tmp_path, small) -> None:
    source, options, weights = small
    result = convert(source, tmp_path / "large", resolution=1024, **options)
    model, facts, _ = load_any(tmp_path / "large")
    assert (model.config.sample_size, model.config.interpolation_scale) == (128, 2.0)
    assert facts.trained_positions == (8, 1.0)
    assert read_card(tmp_path / "large")["details"]["changed"]["resolution"] == {
        "from": {"sample_size": 8, "interpolation_scale": 1.0, "use_additional_conditions": False},
        "to": {"sample_size": 128, "interpolation_scale": 2.0, "use_additional_conditions": True},
    }
    assert any("range goes from 4 to 32" in note for note in result["notes"])
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())
    assert result["parameters"] == sum(p.numel() for p in model.parameters())

    # From the changed checkpoint on, the trained positions stay what they were.
    convert(tmp_path / "large", tmp_path / "again", positions={"sample_size": 64})
    assert load_any(tmp_path / "again").facts.trained_positions == (8, 1.0)
    unchanged = convert(tmp_path / "large", tmp_path / "same", resolution=1024)
    assert any("nothing changed" in note for note in unchanged["notes"])
    assert "changed" not in read_card(tmp_path / "same")["details"]


def test_the_official_file_holds_the_new_table_and_size_embedders(tmp_path, small) -> None:
    source, options, _ = small
    result = convert(source, tmp_path / "out", "official", resolution=1024, **options)
    stored = torch.load(tmp_path / "out" / result["file"], weights_only=True)["state_dict"]
    table = original.position_table(original.WIDTH, 64, 64, 2.0)
    torch.testing.assert_close(stored["pos_embed"], table, rtol=0, atol=1e-5)
    assert not stored["csize_embedder.mlp.2.weight"].any()
    assert stored["ar_embedder.mlp.0.weight"].any()
    config = load_any(tmp_path / "out").model.config
    assert (config.sample_size, config.interpolation_scale) == (128, 2.0)


def test_diffusers_class_computes_the_same_at_the_new_resolution(tmp_path) -> None:
    torch.save({"state_dict": original.make_weights("pixart")}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "out", resolution=1024, **HEADS)
    theirs = PixArtTransformer2DModel.from_pretrained(tmp_path / "out/transformer").eval()
    ours = load_transformer(tmp_path / "out").eval()
    latents, t = torch.randn(2, 4, 128, 128), torch.tensor([3, 990])
    text = torch.randn(2, 5, original.CAPTION)
    with torch.no_grad():
        expected = theirs(latents, text, t, added_cond_kwargs=SIZES).sample
        torch.testing.assert_close(ours(latents, t, text, **SIZES), expected, rtol=0, atol=5e-6)


def test_a_dit_becomes_a_pixart_of_another_resolution_in_one_call(tmp_path) -> None:
    torch.save(original.make_weights("dit"), tmp_path / "dit.pt")
    options = HEADS | {"caption_channels": 7}
    result = convert(tmp_path / "dit.pt", tmp_path / "one", resolution=1024, **options)
    agreement = {row["timestep"]: row["output"] for row in result["reparameterisation"]}
    assert agreement[500] < 1e-5
    convert(tmp_path / "dit.pt", tmp_path / "first", **options)
    convert(tmp_path / "first", tmp_path / "second", resolution=1024)
    one, two = (load_any(tmp_path / name) for name in ("one", "second"))
    torch.testing.assert_close(one.model.state_dict(), two.model.state_dict(), rtol=0, atol=0)
    assert one.model.config == two.model.config
    assert one.facts == two.facts
    with pytest.raises(UserError, match="DiT has none"):
        convert(tmp_path / "dit.pt", tmp_path / "dit", "official", resolution=1024, **HEADS)
    convert(tmp_path / "dit.pt", tmp_path / "dit", "official", resolution=256, **HEADS)
    assert load_any(tmp_path / "dit").model.config.sample_size == 32


def test_the_vae_decides_how_many_latents_a_resolution_has(tmp_path) -> None:
    torch.save({"state_dict": original.make_weights("pixart")}, tmp_path / "a.pth")
    (tmp_path / "vae").mkdir()
    vae = {"_class_name": "AutoencoderKL", "block_out_channels": [32, 32, 32]}
    (tmp_path / "vae/config.json").write_text(json.dumps(vae))
    convert(tmp_path / "a.pth", tmp_path / "f4", vae=str(tmp_path), resolution=256, **HEADS)
    assert load_any(tmp_path / "f4").model.config.sample_size == 64
    unknown = convert(tmp_path / "a.pth", tmp_path / "f8", vae="org/vae", resolution=256, **HEADS)
    assert load_any(tmp_path / "f8").model.config.sample_size == 32
    assert any("VAE org/vae is not at hand, 8 pixels per latent" in note for note in unknown["notes"])


def test_resolution_and_positions_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="either resolution"):
        ConvertStep(source="a", to="pixart", resolution=512, positions={"sample_size": 64})
    with pytest.raises(ValidationError, match="256, 512 or 1024"):
        ConvertStep(source="a", to="pixart", resolution=768)
