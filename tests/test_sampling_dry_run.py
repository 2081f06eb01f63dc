"""`pixart sample --dry-run`: what it counts is what a run does, and it refuses in the same words."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import pixart, pixart_json
from PIL import Image
from tiny_pipelines import open_model, write_tiny_pipeline
from torch.utils.flop_counter import FlopCounterMode

from pixart_core.artifacts.samples import SampleRecord, write_image
from pixart_core.errors import UserError
from pixart_core.models import files
from pixart_core.models.files import load_transformer
from pixart_core.sampling.denoise import denoise, initial_noise, noise_generators
from pixart_core.sampling.forecast import flops_per_call, model_calls, png_bytes_at_most
from pixart_core.sampling.model import SamplingModel
from pixart_core.sampling.outline import read_outline
from pixart_core.sampling.schedulers import STOCHASTIC

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(pipeline: Path) -> SamplingModel:
    return open_model(pipeline, ["a red circle"])


@pytest.fixture(scope="module")
def without_variance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("model"), learned_variance=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Exit code, the JSON on stdout, and the last line on stderr of `pixart sample`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, dict[str, Any], str]:
        code, told, err = pixart_json(capsys, "sample", "--device", "cpu", *arguments)
        return code, told, (err.splitlines() or [""])[-1]

    return run


@pytest.mark.parametrize("size", [(16, 16), (24, 40)])
def test_flops_equal_torchs_count_to_the_digit(pipeline: Path, size: tuple[int, int]) -> None:
    outline, model = read_outline(str(pipeline)), load_transformer(pipeline)
    captions = torch.randn(1, outline.facts.max_tokens, outline.config.caption_channels)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(
            torch.randn(1, outline.config.in_channels, size[0] // 2, size[1] // 2),
            torch.tensor([7.0]),
            text_embeds=captions,
            text_mask=torch.ones(captions.shape[:2], dtype=torch.bool),
        )
    assert flops_per_call(outline, *size) == counter.get_total_flops()


@pytest.mark.parametrize("scheduler", ["dpm-solver", "sa-solver", "iddpm", "ddim", "lcm"])
@pytest.mark.parametrize(
    ("guidance_scale", "interval"), [(4.5, None), (1.0, None), (4.5, (0.2, 0.6)), (3.0, (0.5, 0.5))]
)
def test_pictures_through_the_transformer_are_counted(
    model: SamplingModel, scheduler: str, guidance_scale: float, interval: tuple[float, float] | None
) -> None:
    shape = (3, 8, 8)
    asked: list[int] = []
    hook = model.transformer.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    prompts, unconditional = model.encoded(["a red circle"], "")
    denoise(
        model,
        initial_noise([3], shape),
        prompts,
        unconditional,
        scheduler=scheduler,
        num_inference_steps=7,
        guidance_scale=guidance_scale,
        guidance_interval=interval,
        generators=noise_generators([3], shape) if scheduler in STOCHASTIC else None,
        fast=False,
    )
    hook.remove()
    assert model_calls(scheduler, 7, guidance_scale, interval) == sum(asked)


@pytest.mark.parametrize("size", [(16, 16), (300, 7), (640, 512)])
def test_no_png_takes_more_room_than_is_told(tmp_path: Path, size: tuple[int, int]) -> None:
    for prompt in ("a", "ß" * 5000):
        record = SampleRecord("0", "images/0.png", prompt, 1, *size, negative_prompt=prompt)
        noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        write_image(tmp_path, record, Image.fromarray(noise), {"dtype": "fp32"})
        written = (tmp_path / record.file).stat().st_size
        assert written <= png_bytes_at_most(record)
    short = dataclasses.replace(record, prompt="", negative_prompt="")
    assert png_bytes_at_most(short) < 1.1 * written + 5000


def test_it_counts_without_weights_and_makes_nothing(
    pipeline: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    hollow = shutil.copytree(pipeline, tmp_path / "hollow")
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        (hollow / f"{part}.safetensors").write_bytes(b"no weights")
    load, loaded = files.load_weights, []
    monkeypatch.setattr(files, "load_weights", lambda *args: loaded.append(load(*args)) or loaded[-1])
    rows = [
        {"prompt": "a", "images_per_prompt": 3},
        {"prompt": "b", "height": 24, "width": 16, "num_inference_steps": 5},
        {"prompt": "c", "guidance_scale": 1},
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [
        "--checkpoint",
        hollow,
        "--prompts",
        prompts,
        "--batch-size",
        "2",
        "--num-inference-steps",
        "4",
    ]
    before = sorted(tmp_path.rglob("*"))
    code, plan, _ = run(*options, "--dry-run")
    assert code == 0
    assert all(tensor.is_meta for weights in loaded for tensor in weights.values())  # of the headers
    assert sorted(tmp_path.rglob("*")) == before
    told = plan["estimate"]
    expected = {
        "prompts": 3,
        "images": 5,
        "there": 0,
        "batches": 4,  # two of the first prompt, and each of the others its own
        "batches_left": 4,
        "sizes": {"16x16": 4, "24x16": 1},
        "solver_steps": 4 * 4 + 5,
        "model_calls": 3 * 8 + 10 + 4,
    }
    assert {name: told[name] for name in expected} == expected
    outline = read_outline(str(pipeline))
    square, tall = flops_per_call(outline, 16, 16), flops_per_call(outline, 24, 16)
    assert told["flops"] == told["flops_left"] == 28 * square + 10 * tall


def test_what_is_drawn_already_is_told(pipeline: Path, tmp_path: Path, run: Run, capsys: Any) -> None:
    options = ["--checkpoint", pipeline, "a", "b", "c", "--batch-size", "2", "--num-inference-steps", "2"]
    options += ["--output", tmp_path / "out"]
    assert run(*options)[0] == 0
    (tmp_path / "out/images/000001.png").unlink()
    told = run(*options, "--dry-run")[1]["estimate"]
    assert (told["there"], told["batches"], told["batches_left"]) == (2, 2, 1)
    assert 3 * told["flops_left"] == 2 * told["flops"]  # the batch is drawn whole
    assert pixart("sample", *options, "--device", "cpu", "--dry-run") == 0
    page = capsys.readouterr().out
    assert "3 of 3 prompts, 2 of them there already" in page
    assert "2 of at most 2, 1 left to draw" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a", "--set", "sizes=[[18,16]]"], "multiples of 4"),
        (["a", "--set", "sizes=[[64,64]]"], "was trained at 16x16"),
        (["a", "--ar", "1:900"], "none of about that shape"),
        (["a", "--scheduler", "iddpm"], "has no learned variance"),
        (["--prompts", "binary"], "binary:1: not UTF-8"),
        (["--prompts", "rows.jsonl"], "unknown key"),
        (["--prompts", "steps.csv", "--scheduler", "lcm"], "num_inference_steps 51: lcm has at most 50"),
        (["a", "--device", "cuda:99"], "cannot be used on this machine"),
        (["a", "--output", "foreign"], "not empty"),
        (["a", "--output", "begun"], "samples of another checkpoint or with other options"),
        
    ],
    ids=str,
)  # fmt: skip
def test_it_refuses_what_a_run_refuses_in_the_same_words(
    without_variance: Path, tmp_path: Path, run: Run, options: list[str], message: str
) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "sede": 3}\n')
    (tmp_path / "steps.csv").write_text("prompt,num_inference_steps\na,51\n")
    (tmp_path / "foreign/images").mkdir(parents=True)
    (tmp_path / "foreign/images/a.png").write_bytes(b"a photo")
    (tmp_path / "begun/images").mkdir(parents=True)
    (tmp_path / "begun/sampling.json").write_text("0123456789abcdef\n")
    before = sorted(tmp_path.rglob("*"))
    dry, real = (run("--checkpoint", without_variance, *options, *more) for more in (["--dry-run"], []))
    assert dry == real
    assert dry[0] == 2
    assert message in dry[2]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("damage", ["gone", "cut off", "of other shapes", "of more layers"])
def test_a_transformer_that_cannot_be_loaded_is_refused_before_anything_is(
    pipeline: Path, tmp_path: Path, run: Run, damage: str
) -> None:
    broken = shutil.copytree(pipeline, tmp_path / "broken")
    file, config = broken / WEIGHTS, broken / "transformer/config.json"
    if damage == "gone":
        file.unlink()
    elif damage == "cut off":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        change = {"attention_head_dim": 16} if damage == "of other shapes" else {"num_layers": 3}
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError) as loaded:
        load_transformer(broken)
    code, _, error = run("--checkpoint", broken, "a", "--dry-run")
    assert (code, error) == (2, f"pixart: error: {loaded.value}")
