"""DiT to PixArt: equal at one timestep, whatever the text, and measured away from it."""

import dataclasses
import json

import original_layouts as original
import pytest
import torch
from diffusers import DiTTransformer2DModel

from pixart_core.artifacts.card import read_card
from pixart_core.conversion import targets
from pixart_core.conversion.agreement import measure_agreement
from pixart_core.conversion.convert import run_conversion
from pixart_core.conversion.detect import load_any
from pixart_core.conversion.from_dit import pixart_from_dit, with_definition
from pixart_core.conversion.infer import Hints
from pixart_core.conversion.official import to_original
from pixart_core.errors import UserError
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.files import load_transformer, save_transformer
from pixart_core.progress import Silent
from pixart_core.recipe.schema import ConvertStep

CLOSE = {"rtol": 0.0, "atol": 1e-5}
DIFFUSERS = {"embedders": "per_block", "timestep_freq_shift": 1, "mlp_norm_eps": 1e-5}


def random_dit(seed: int = 0, **changes):
    config = TransformerConfig(
        **{
            "num_attention_heads": 4,
            "attention_head_dim": 8,
            "num_layers": 3,
            "sample_size": 8,
            "conditioning": "class",
            "num_embeds_ada_norm": 5,
        }
        | changes
    )
    dit = build_transformer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    return dit


def null_labels(dit, count: int) -> torch.Tensor:
    return torch.full((count,), dit.null_class)


def without_class(dit):
    """A copy whose class embeddings are zero."""
    copy = build_transformer(dit.config)
    copy.load_state_dict(
        {name: 0 * t if "class_embedder" in name else t for name, t in dit.state_dict().items()}
    )
    return copy


def outputs(dit, pixart, timesteps: list[int], seed: int):
    """(of the DiT's null class, of PixArt with some caption) on the same latents."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.tensor(timesteps)
    latents = torch.randn(len(t), 4, 8, 12, generator=generator)
    text = 3 * torch.randn(len(t), 5, 12, generator=generator)
    mask = torch.arange(5) < torch.randint(1, 6, (len(t), 1), generator=generator)
    with torch.no_grad():
        return dit(latents, t, null_labels(dit, len(t))), pixart(latents, t, text, mask)


@pytest.mark.parametrize("layout", [{}, DIFFUSERS], ids=["original", "diffusers"])
@pytest.mark.parametrize("shared_mlp", ["mean", "first", "zero", "random"])
@pytest.mark.parametrize("class_condition", ["null", "none"])
@pytest.mark.parametrize("timestep", [500, 0, 731, 999])
def test_pixart_equals_the_dit_at_the_chosen_timestep_whatever_the_text(
    layout, shared_mlp, class_condition, timestep
) -> None:
    for seed in range(3):
        dit = random_dit(seed, **layout)
        pixart = pixart_from_dit(
            dit,
            caption_channels=12,
            timestep=timestep,
            class_condition=class_condition,
            shared_mlp=shared_mlp,
            seed=seed,
        )
        expected = dit if class_condition == "null" else without_class(dit)
        theirs, ours = outputs(expected, pixart, [timestep] * 2, seed)
        torch.testing.assert_close(ours, theirs, **CLOSE)
        theirs, ours = outputs(expected, pixart, [(timestep + 400) % 1000], seed)
        assert not torch.allclose(ours, theirs, atol=1e-2)


EVERYWHERE = [0, 1, 99, 250, 500, 731, 999]


@pytest.mark.parametrize("class_condition", ["null", "none"])
@pytest.mark.parametrize("modulation", ["adaln", "adaln_single"])
def test_with_the_dit_s_own_modulation_pixart_equals_it_at_every_timestep(
    class_condition, modulation
) -> None:
    for seed in range(3):
        dit = random_dit(seed, modulation=modulation)
        pixart = pixart_from_dit(
            dit, caption_channels=12, modulation=modulation, class_condition=class_condition, seed=seed
        )
        assert (pixart.config.conditioning, pixart.config.modulation) == ("text", modulation)
        expected = dit if class_condition == "null" else without_class(dit)
        theirs, ours = outputs(expected, pixart, EVERYWHERE, seed)
        torch.testing.assert_close(ours, theirs, **CLOSE)
        rows = measure_agreement(dit, pixart, class_condition=class_condition)
        assert all(row[key] < 1e-5 for row in rows for key in ("modulation", "final", "output"))


def with_copied_embedders(shared):
    """The same weights in the layout of diffusers' class, which then means something else."""
    copies = build_transformer(dataclasses.replace(shared.config, **DIFFUSERS))
    weights = dict(shared.state_dict())
    for name in [name for name in weights if name.startswith("emb.")]:
        tensor = weights.pop(name)
        weights |= {f"transformer_blocks.{i}.norm1.{name}": tensor for i in range(shared.config.num_layers)}
    copies.load_state_dict(weights, strict=True)
    return copies


@pytest.mark.parametrize("definition", ["auto", "diffusers"])
def test_diffusers_dit_keeps_its_definition_at_every_timestep(definition) -> None:
    copies = with_copied_embedders(random_dit())
    dit, _ = with_definition(copies, definition)
    pixart = pixart_from_dit(dit, caption_channels=12, modulation="adaln")
    if definition == "diffusers":
        theirs = DiTTransformer2DModel.from_config(copies.config.to_diffusers()).eval()
        theirs.load_state_dict(copies.state_dict(), strict=True)
        assert pixart.config.timestep_freq_shift == 1
        latents, t = torch.randn(7, 4, 8, 8), torch.tensor(EVERYWHERE)
        expected = theirs(latents, t, null_labels(dit, 7)).sample
        torch.testing.assert_close(pixart(latents, t, torch.randn(7, 2, 12)), expected, **CLOSE)
    else:
        expected, ours = outputs(random_dit(), pixart, EVERYWHERE, 0)
        torch.testing.assert_close(ours, expected, **CLOSE)


def test_a_modulation_that_the_dit_cannot_keep_is_refused() -> None:
    with pytest.raises(UserError, match=r"one timestep embedder for all blocks; this DiT .*has several"):
        pixart_from_dit(random_dit(**DIFFUSERS), caption_channels=12, modulation="adaln")
    with pytest.raises(UserError, match="this DiT has one for all"):
        pixart_from_dit(random_dit(modulation="adaln_single"), caption_channels=12, modulation="adaln")


def test_convert_keeps_the_modulation_on_request(tmp_path) -> None:
    dit = random_dit()
    save_transformer(dit.config, dit.state_dict(), tmp_path / "dit")
    options = {"source": str(tmp_path / "dit"), "to": "pixart", "caption_channels": 12, "modulation": "adaln"}
    result = run_conversion(ConvertStep(**options), tmp_path / "ours", Silent())
    rows = json.loads((tmp_path / "ours" / "reparameterisation.json").read_text())
    assert rows == result["reparameterisation"]
    assert all(row["output"] < 1e-5 for row in rows)
    assert read_card(tmp_path / "ours")["details"]["timestep_of_agreement"] == "all"
    theirs, ours = outputs(dit, load_transformer(tmp_path / "ours"), EVERYWHERE, 0)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    for unused in ({"timestep": 3}, {"shared_mlp": "zero"}):
        with pytest.raises(UserError, match=f"{next(iter(unused))}: not with modulation=adaln"):
            run_conversion(ConvertStep(**options, **unused), tmp_path / "other", Silent())
    again = ConvertStep(source=str(tmp_path / "ours"), to="pixart", modulation="adaln")
    with pytest.raises(UserError, match="modulation: only for a DiT"):
        run_conversion(again, tmp_path / "other", Silent())
    assert not (tmp_path / "other").exists()


def test_it_equals_the_original_dit_written_by_hand(tmp_path) -> None:
    weights = original.make_weights("dit")
    torch.save(weights, tmp_path / "dit.pt")
    dit = load_any(tmp_path / "dit.pt", Hints(num_attention_heads=original.HEADS)).model
    pixart = pixart_from_dit(dit, caption_channels=12)
    latents, t = torch.randn(2, 4, 8, 8), torch.tensor([500, 500])
    expected = original.forward(weights, latents, t, labels=torch.tensor([5, 5]))
    torch.testing.assert_close(pixart(latents, t, torch.randn(2, 3, 12)), expected, **CLOSE)


def test_it_equals_diffusers_dit_trained_in_that_class() -> None:
    dit = random_dit(**DIFFUSERS)
    theirs = DiTTransformer2DModel.from_config(dit.config.to_diffusers()).eval()
    theirs.load_state_dict(dit.state_dict(), strict=True)
    chosen, reason = with_definition(dit, "auto")
    pixart = pixart_from_dit(chosen, caption_channels=12)
    latents, t = torch.randn(2, 4, 8, 8), torch.tensor([500, 500])
    expected = theirs(latents, t, torch.tensor([5, 5])).sample
    torch.testing.assert_close(pixart(latents, t, torch.randn(2, 3, 12)), expected, **CLOSE)
    assert "trained in diffusers' class" in reason


def test_original_weights_in_diffusers_layout_mean_the_original_dit() -> None:
    shared = random_dit()
    copies = with_copied_embedders(shared)
    restored, reason = with_definition(copies, "auto")
    assert restored.config == shared.config
    torch.testing.assert_close(restored.state_dict(), shared.state_dict(), rtol=0, atol=0)
    assert "original DiT" in reason
    assert with_definition(copies, "diffusers")[0] is copies


def test_the_shared_mlp_is_the_mean_over_the_blocks() -> None:
    dit = random_dit()
    pixart = pixart_from_dit(dit, caption_channels=12)
    expected = torch.stack([block.norm1.linear.weight for block in dit.transformer_blocks]).mean(0)
    torch.testing.assert_close(pixart.adaln_single.linear.weight, expected)


def test_the_measured_error_is_that_of_the_outputs() -> None:
    dit = random_dit()
    pixart = pixart_from_dit(dit, caption_channels=12)
    rows = measure_agreement(dit, pixart)
    assert [row["timestep"] for row in rows] == [*range(0, 1000, 100), 999]
    for row in rows:
        at_500 = row["timestep"] == 500
        assert all((row[key] < 1e-5) == at_500 for key in ("modulation", "final", "output")), row
    # Without the class and with one block, the mean MLP is the block's own: no error left at any timestep.
    one = random_dit(num_layers=1)
    pixart = pixart_from_dit(one, caption_channels=12, class_condition="none")
    assert all(row["modulation"] < 1e-5 for row in measure_agreement(one, pixart, class_condition="none"))


def test_new_parts_depend_on_the_seed_alone() -> None:
    dit = random_dit()
    first, again, other = (
        pixart_from_dit(dit, caption_channels=12, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    name = "transformer_blocks.1.attn2.to_q.weight"
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], first[name.replace(".1.", ".2.", 1)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [{}, DIFFUSERS, {"modulation": "adaln_single"}])
@pytest.mark.parametrize("shared_mlp", ["mean", "first", "zero"])
def test_a_half_precision_dit_is_computed_in_full_and_kept_as_it_is_stored(dtype, layout, shared_mlp) -> None:
    """Equal to a float32 copy in all that is computed; without such a copy of what is only written again."""
    half, full = random_dit(**layout).to(dtype), random_dit(**layout).to(dtype).float()
    ours, expected = (
        pixart_from_dit(dit, caption_channels=12, shared_mlp=shared_mlp) for dit in (half, full)
    )
    stored = {tensor.data_ptr() for tensor in half.state_dict().values()}
    kept = [name for name, tensor in ours.state_dict().items() if tensor.dtype == dtype]
    assert {"pos_embed.proj.weight", "transformer_blocks.2.ff.net.2.weight"} <= set(kept)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor.float(), expected.state_dict()[name]), name
        assert (tensor.data_ptr() in stored) == (name in kept), name
    assert measure_agreement(half, ours) == measure_agreement(full, expected)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    assert kept == [name for name, tensor in ours.state_dict().items() if tensor.dtype == dtype]


def test_converting_a_half_precision_dit_copies_none_of_it(tmp_path, monkeypatch) -> None:
    dit = random_dit().half()
    torch.save(to_original("dit", dit.state_dict()), tmp_path / "dit.pt")
    written = {}
    monkeypatch.setattr(targets, "save_transformer", lambda config, weights, *_: written.update(weights))
    options = {"num_attention_heads": 4, "sample_size": 8, "caption_channels": 12}
    step = ConvertStep(source=str(tmp_path / "dit.pt"), to="pixart", **options)
    run_conversion(step, tmp_path / "ours", Silent())
    for name, tensor in dit.state_dict().items():
        if name in written and "proj_out" not in name:
            assert written[name].dtype == torch.float16
            assert torch.equal(written[name], tensor), name
