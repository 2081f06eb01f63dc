"""Laws of sampling: diffusers' pipeline gives the same pictures; noise depends on the seed alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import PixArtAlphaPipeline
from drawn_images import pixels
from PIL import Image
from tiny_pipelines import open_model, write_tiny_pipeline

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.artifacts.samples import read_samples
from pixart_core.artifacts.uncond import read_uncond
from pixart_core.conversion.pipeline import write_pipeline
from pixart_core.errors import UserError
from pixart_core.models.files import load_transformer
from pixart_core.progress import Silent
from pixart_core.recipe.schema import SampleStep
from pixart_core.sampling.denoise import denoise, initial_noise
from pixart_core.sampling.outline import read_outline
from pixart_core.sampling.sample import run_sampling


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("model"))


def make_step(pipeline: Path, **changes) -> SampleStep:
    options = {
        "checkpoint": str(pipeline),
        "prompts": ("a red circle", "two blue squares"),
        "num_inference_steps": 4,
    }
    return SampleStep(**(options | changes))


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
@pytest.mark.parametrize("size", [(16, 16), (24, 16)])
def test_latents_equal_those_of_diffusers_pipeline(pipeline, guidance_scale, size) -> None:
    texts = ["a red circle", "two blue squares on a white background"]
    model = open_model(pipeline, texts)
    prompts, unconditional = model.encoded(texts, "")
    noise = initial_noise([3, 4], (3, size[0] // 2, size[1] // 2))
    ours = denoise(
        model,
        noise,
        prompts,
        unconditional,
        scheduler="dpm-solver",
        num_inference_steps=20,
        guidance_scale=guidance_scale,
    )
    theirs = PixArtAlphaPipeline.from_pretrained(pipeline)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        prompt=["a red circle", "two blue squares on a white background"],
        height=size[0],
        width=size[1],
        num_inference_steps=20,
        guidance_scale=guidance_scale,
        latents=noise,
        output_type="latent",
        use_resolution_binning=False,
        clean_caption=False,
    ).images
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_an_image_depends_on_its_seed_not_on_its_batch(pipeline, tmp_path) -> None:
    prompts = ("a red circle", "two blue squares", "red", "blue", "white")
    run_sampling(make_step(pipeline, prompts=prompts, batch_size=5), tmp_path / "one", Silent())
    run_sampling(make_step(pipeline, prompts=prompts, batch_size=2), tmp_path / "two", Silent())
    for a, b in zip(pixels(tmp_path / "one"), pixels(tmp_path / "two"), strict=True):
        assert np.abs(a - b).max() <= 1  # rounding of sums that are grouped differently
    assert len({image.tobytes() for image in pixels(tmp_path / "one")}) == 5


def test_one_seed_gives_one_result_and_another_seed_another(pipeline, tmp_path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_sampling(make_step(pipeline, seed=seed), tmp_path / name, Silent())
    a, b, c = (sorted((tmp_path / name / "images").iterdir()) for name in "abc")
    assert [file.read_bytes() for file in a] == [file.read_bytes() for file in b]
    assert (tmp_path / "a/samples.jsonl").read_bytes() == (tmp_path / "b/samples.jsonl").read_bytes()
    assert a[0].read_bytes() != c[0].read_bytes()


def test_a_killed_run_continues_with_what_is_missing(pipeline, tmp_path) -> None:
    step = make_step(pipeline, images_per_prompt=2)
    run_sampling(step, tmp_path / "whole", Silent())
    run_sampling(step, tmp_path / "killed", Silent())
    (tmp_path / "killed/card.json").unlink()
    (tmp_path / "killed/images/000002.png").unlink()
    kept = tmp_path / "killed/images/000000.png"
    before = kept.stat().st_mtime_ns
    run_sampling(step, tmp_path / "killed", Silent())
    assert kept.stat().st_mtime_ns == before
    whole, killed = (
        {f.name: f.read_bytes() for f in (tmp_path / n / "images").iterdir()} for n in ("whole", "killed")
    )
    assert killed == whole
    with pytest.raises(UserError, match=r"other options \(guidance_scale 4.5 there, 2.0 here; "):
        run_sampling(make_step(pipeline, guidance_scale=2.0), tmp_path / "killed", Silent())


def test_equal_prompts_do_not_overwrite_each_other_and_pngs_tell_how_they_were_made(
    pipeline, tmp_path
) -> None:
    long = "a red circle " * 20
    step = make_step(pipeline, prompts=(long, long), sizes=((16, 16), (12, 24)), seed=5)
    run_sampling(step, tmp_path / "out", Silent())
    records = read_samples(tmp_path / "out")
    images = [Image.open(tmp_path / "out" / record.file) for record in records]
    assert [(image.height, image.width) for image in images] == [(16, 16), (12, 24)]
    told = json.loads(images[0].text["pixart"])
    assert told["prompt"] == long
    assert told["seed"] == records[0].seed != records[1].seed
    assert told["num_inference_steps"] == 4
    assert told["guidance_scale"] == 4.5


def test_prompts_of_compbench_come_by_category(pipeline, tmp_path) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "shape_val.txt").write_text("a square box\r\n\r\na round plate ")
    (folder / "color_val.txt").write_text("a red bench\n")
    run_sampling(
        make_step(pipeline, prompts=(), prompts_file=str(folder), images_per_prompt=2),
        tmp_path / "out",
        Silent(),
    )
    drawn = [(sample.prompt, sample.meta["category"]) for sample in read_samples(tmp_path / "out")]
    assert drawn == [
        (prompt, category)
        for prompt, category in (
            ("a red bench", "color"),
            ("a square box", "shape"),
            ("a round plate", "shape"),
        )
        for _ in range(2)
    ]


def test_prompts_come_from_a_text_file(pipeline, tmp_path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n\n  two blue squares \n")
    step = make_step(pipeline, prompts=(), prompts_file=str(prompts))
    run_sampling(step, tmp_path / "out", Silent())
    assert [record.prompt for record in read_samples(tmp_path / "out")] == [
        "a red circle",
        "two blue squares",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "nowhere"}, "nowhere is not a folder"),
        ({"sizes": ((18, 16),)}, "multiples of 4"),
        ({"prompts": ()}, "nothing to draw"),
        ({"prompts": (), "prompts_file": "missing.txt"}, "missing.txt"),
        ({"device": "foo"}, "'foo' is no device"),
        ({"device": "meta"}, "'meta' cannot be used on this machine"),
        ({"device": "cuda:99"}, "'cuda:99' cannot be used on this machine"),
    ],
)
def test_a_mistake_is_one_clear_error(pipeline, tmp_path, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        run_sampling(make_step(pipeline, **changes), tmp_path / "out", Silent())
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_named(pipeline, tmp_path) -> None:
    broken = shutil.copytree(pipeline, tmp_path / "broken")
    file = broken / "transformer/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="diffusion_pytorch_model"):
        run_sampling(make_step(broken), tmp_path / "out", Silent())


@pytest.mark.parametrize("marker", [None, b"", b" \n", b"\xff\xfe"])
def test_a_foreign_image_never_becomes_a_sample(pipeline, tmp_path, marker) -> None:
    foreign = tmp_path / "out/images/000000.png"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"a photo")
    if marker is not None:
        (tmp_path / "out/sampling.json").write_bytes(marker)
    with pytest.raises(UserError, match="not empty"):
        run_sampling(make_step(pipeline), tmp_path / "out", Silent())
    foreign.unlink()
    run_sampling(make_step(pipeline), tmp_path / "out", Silent())  # a torn marker is no obstacle
    assert len(read_samples(tmp_path / "out")) == 2


@pytest.fixture(scope="module")
def learned(pipeline, tmp_path_factory) -> Path:
    """The same model, trained with a learned unconditional caption."""
    folder = tmp_path_factory.mktemp("learned")
    model, root = load_transformer(pipeline), str(pipeline)
    facts = ModelFacts(vae=root, text_encoder=root, uncond="learned")
    tokens = torch.randn(120, 16, generator=torch.Generator().manual_seed(1))
    write_pipeline(folder / "p", model, facts, vae=root, text_encoder=root, y_embedding=tokens)
    Card("pipeline", {}, {}, facts.to_details()).write(folder / "p")
    return folder / "p"


def draw(model, prompts: list[str], negative: str) -> torch.Tensor:
    tokens, unconditional = model.encoded(prompts, negative)
    noise = initial_noise([3] * len(prompts), (3, 8, 8))
    return denoise(
        model,
        noise,
        tokens,
        unconditional,
        scheduler="dpm-solver",
        num_inference_steps=3,
        guidance_scale=4.5,
    )


def test_a_negative_prompt_takes_the_place_of_the_learned_embedding(pipeline, learned) -> None:
    prompts = ["a red circle", "two blue squares on a white background"]
    plain, ours = (open_model(folder, [*prompts, "blue"]) for folder in (pipeline, learned))
    torch.testing.assert_close(draw(ours, prompts, "blue"), draw(plain, prompts, "blue"))
    without = draw(ours, prompts, " ")
    assert not torch.allclose(without, draw(plain, prompts, ""), atol=1e-3)
    # Without one: the embedding, cut to the caption's length.
    tokens, _ = plain.encoded(prompts[:1], "")
    expected = denoise(
        plain,
        initial_noise([3], (3, 8, 8)),
        tokens,
        read_uncond(learned)[: len(tokens[0])],
        scheduler="dpm-solver",
        num_inference_steps=3,
        guidance_scale=4.5,
    )
    torch.testing.assert_close(draw(ours, prompts[:1], " "), expected)


def test_a_lost_learned_embedding_is_named(learned, tmp_path) -> None:
    broken = shutil.copytree(learned, tmp_path / "p")
    (broken / "uncond.safetensors").unlink()
    with pytest.raises(UserError, match=r"/p was trained .* no uncond\.safetensors"):
        read_outline(str(broken))


def test_bf16_holds_for_transformer_and_text_encoder_but_not_for_the_vae(pipeline) -> None:
    model, exact = (
        open_model(pipeline, ["a red circle"], dtype) for dtype in (torch.bfloat16, torch.float32)
    )
    ours, theirs = (one.tokens["a red circle"] for one in (model, exact))
    assert torch.equal(ours, ours.bfloat16().float())
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
    assert next(model.transformer.parameters()).dtype == torch.bfloat16
    assert model.vae.dtype == torch.float32
    assert draw(model, ["a red circle"], "").isfinite().all()


def test_the_vae_sees_few_pixels_at_a_time_and_gives_the_same_pictures(pipeline, monkeypatch) -> None:
    model = open_model(pipeline)
    latents = torch.randn(5, 3, 8, 8)
    whole = model.decode(latents)
    calls: list[int] = []
    decode = model.vae.decode
    monkeypatch.setattr(model.vae, "decode", lambda part: calls.append(len(part)) or decode(part))
    monkeypatch.setattr("pixart_core.sampling.model.DECODE_PIXELS", 2 * 16 * 16)
    torch.testing.assert_close(model.decode(latents), whole)
    monkeypatch.setattr("pixart_core.sampling.model.DECODE_PIXELS", 10)
    model.decode(latents[:2])
    assert calls == [2, 2, 1, 1, 1]


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_damaged_vae_config_is_named(pipeline, tmp_path, text) -> None:
    broken = shutil.copytree(pipeline, tmp_path / "broken")
    (broken / "vae/config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"vae/config\.json is damaged"):
        read_outline(str(broken))


def test_pipelines_of_the_older_class_name_are_sampled(pipeline, tmp_path) -> None:
    older = shutil.copytree(pipeline, tmp_path / "older")
    path = older / "transformer/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "Transformer2DModel"}))
    ours, theirs = (open_model(folder) for folder in (older, pipeline))
    assert ours.transformer.config == theirs.transformer.config
