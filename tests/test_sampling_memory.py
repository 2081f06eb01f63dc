"""Laws of low memory: less of it gives the same pictures, or tells what it changes; peaks are measured."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from folders import contents
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tiny_pipelines import open_model, write_tiny_pipeline
from transformers import T5Config, T5EncoderModel

from pixart_core.artifacts.provenance import Provenance
from pixart_core.encoders import quantised
from pixart_core.encoders.offload import let_go, letting_go
from pixart_core.encoders.quantised import check_quantization
from pixart_core.encoders.text import load_text_encoder
from pixart_core.encoders.tiny_t5 import build_tokenizer
from pixart_core.errors import PixartError, UserError
from pixart_core.progress import Silent
from pixart_core.recipe.schema import SampleStep
from pixart_core.sampling import draw as drawing
from pixart_core.sampling.memory import MemoryWatch
from pixart_core.sampling.model import load_model
from pixart_core.sampling.prompt_tokens import free
from pixart_core.sampling.sample import run_sampling

CPU = torch.device("cpu")
TEXTS = ["a red circle", "two blue squares on a white background", ""]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others do not tell what they took")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("model"))


def sample(pipeline: Path, output: Path, **changes) -> dict:
    options = {"checkpoint": str(pipeline), "prompts": ("red", "two blue squares"), "num_inference_steps": 2}
    return run_sampling(SampleStep(**(options | changes)), output, Silent())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_layer_by_layer_is_the_same_byte_for_byte(pipeline, tmp_path, dtype) -> None:
    sample(pipeline, tmp_path / "whole", dtype=dtype)
    sample(pipeline, tmp_path / "layers", dtype=dtype, offload="sequential")
    assert contents(tmp_path / "whole") == contents(tmp_path / "layers")


@pytest.fixture(scope="module")
def wide_encoder(tmp_path_factory) -> Path:
    """A T5 of 12 layers and 100 MB, each layer 8 MB, in bfloat16."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = build_tokenizer(TEXTS)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=512, d_ff=2048, num_layers=12, num_heads=8, d_kv=64,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    T5EncoderModel(config).to(torch.bfloat16).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


# In a process of its own: what earlier tests freed would be used again, and hide what is taken.
MEASURED = """
import sys, torch
from pixart_core.encoders.text import load_text_encoder
from pixart_core.sampling import memory
memory.SAMPLE_SECONDS = 0.0005
load_text_encoder(sys.argv[1]).encode_each(["red"])  # libraries are loaded now
for offload in ("sequential", "none"):
    watch = memory.MemoryWatch(torch.device("cpu"))
    with watch.phase("nothing"):
        pass
    with watch.phase("text_encoder"):
        encoder = load_text_encoder(sys.argv[2], offload=offload)
        encoder.encode_each(["red"])
    del encoder
    before, after = watch.peaks["nothing"], watch.peaks["text_encoder"]
    print(after.resident - before.resident, after.unmapped - before.unmapped)
"""


@LINUX
def test_layer_by_layer_takes_the_memory_of_a_few_layers(pipeline, wide_encoder) -> None:
    command = [sys.executable, "-c", MEASURED, str(pipeline), str(wide_encoder)]
    # Blocks go back to the kernel when they are freed, and are not used again unseen.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    sequential, whole = ([int(number) for number in line.split()] for line in told.splitlines())
    parameters = sum(t.numel() for t in load_file(wide_encoder / "text_encoder/model.safetensors").values())
    # In float32 all at once, of which nothing is mapped; layer by layer a few of twelve.
    assert whole[1] > 0.9 * 4 * parameters
    assert max(sequential) < 0.4 * 4 * parameters


@LINUX
def test_only_what_is_mapped_from_a_file_is_let_go(tmp_path) -> None:
    values = torch.randn(4000, 4000)
    save_file({"a": values}, tmp_path / "x.safetensors")
    mapped = load_file(tmp_path / "x.safetensors")["a"]
    watch = MemoryWatch(CPU)
    free()  # what earlier tests left
    mapped.sum()
    with watch.phase("before"):
        pass
    assert let_go(mapped)
    with watch.phase("after"):
        pass
    assert watch.peaks["before"].resident - watch.peaks["after"].resident > mapped.nbytes / 2
    assert torch.equal(mapped, values)  # read again
    own = values.clone()
    assert not let_go(own)
    assert torch.equal(own, values)


@LINUX
def test_files_that_are_copied_do_not_stay_in_memory(wide_encoder) -> None:
    place = {"pretrained_model_name_or_path": str(wide_encoder / "text_encoder")}
    file = wide_encoder / "text_encoder/model.safetensors"
    mapped = load_file(file)
    before = {name: tensor.double().sum() for name, tensor in mapped.items()}
    watch = MemoryWatch(CPU)
    with watch.phase("read"):
        pass
    with letting_go(place):
        for _ in range(1000):
            watch.peaks.pop("now", None)
            with watch.phase("now"):
                pass
            if watch.peaks["read"].resident - watch.peaks["now"].resident > file.stat().st_size / 2:
                break
            time.sleep(0.01)
        else:
            pytest.fail("pages stay")
    assert all(tensor.double().sum() == before[name] for name, tensor in mapped.items())


@LINUX
def test_a_phase_counts_what_is_resident_and_what_is_not_mapped(tmp_path) -> None:
    megabytes = 64 * 2**20
    np.ones(megabytes, dtype=np.uint8).tofile(tmp_path / "x")
    watch = MemoryWatch(CPU)
    free()  # what earlier tests left would go back to the kernel in the middle, and make "nothing" too large
    with watch.phase("nothing"):
        pass
    with watch.phase("mapped"):
        pages = np.memmap(tmp_path / "x", mode="r")  # there at the end of the phase, so surely counted
        assert pages.sum() == megabytes
    del pages
    for size in (1, megabytes, 1):  # the largest counts
        with watch.phase("own"):
            array = np.ones(size, dtype=np.uint8)
        del array
    nothing, mapped, own = (watch.peaks[name] for name in ("nothing", "mapped", "own"))
    assert mapped.resident - nothing.resident > megabytes / 2 > mapped.unmapped - nothing.unmapped
    assert own.unmapped - nothing.unmapped > megabytes / 2
    report = watch.report()
    assert list(report) == ["nothing", "mapped", "own", "peak"]
    assert report["peak"]["unmapped"] == max(peak.unmapped for peak in watch.peaks.values())
    assert "cuda" not in report["peak"]


@LINUX
def test_the_result_tells_the_peaks_of_each_part_and_files_do_not(pipeline, tmp_path) -> None:
    result = sample(pipeline, tmp_path / "set")
    assert list(result["memory"]) == ["text_encoder", "loading", "denoising", "decoding", "peak"]
    assert all(0 < part["unmapped"] < part["resident"] for part in result["memory"].values())
    json.dumps(result)
    assert not any(b"resident" in content for content in contents(tmp_path / "set").values())


def test_tiles_are_those_of_diffusers_and_small_pictures_have_none(pipeline) -> None:
    plain = open_model(pipeline)
    tiled = load_model(plain.outline, plain.tokens, CPU, torch.float32, vae_tiling=True)
    theirs = AutoencoderKL.from_pretrained(pipeline / "vae")
    theirs.enable_tiling()
    side = theirs.tile_latent_min_size
    generator = torch.Generator().manual_seed(0)
    for latent_side, same in ((side, True), (side * 2, False)):
        latents = torch.randn(1, 3, latent_side, latent_side, generator=generator)
        scaled = latents / theirs.config.scaling_factor
        with torch.no_grad():
            expected = theirs.decode(scaled).sample.clamp(-1, 1)
        assert torch.equal(tiled.decode(latents), expected)
        assert torch.equal(plain.decode(latents), expected) is same


def test_a_vae_that_waits_decodes_the_same(pipeline) -> None:
    plain = open_model(pipeline)
    waiting = load_model(plain.outline, plain.tokens, CPU, torch.float32, vae_waits=True)
    latents = torch.randn(2, 3, 8, 8)
    assert torch.equal(waiting.decode(latents), plain.decode(latents))


def test_what_changes_pictures_is_told_by_them_and_what_does_not_is_not(pipeline, tmp_path) -> None:
    sample(pipeline, tmp_path / "set", vae_tiling=True, offload="sequential")
    told = Provenance.read(tmp_path / "set/images/000000.png")
    assert told.options()["vae_tiling"] is True
    assert told.options()["text_encoder_quantization"] == "none"
    assert "offload" not in json.loads((tmp_path / "set/card.json").read_text())["options"]


def test_quantisation_and_offload_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="give either offload=sequential or text_encoder_quantization"):
        SampleStep(checkpoint="x", text_encoder_quantization="8bit", offload="sequential")


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_quantisation_without_bitsandbytes_names_the_package(pipeline, tmp_path, monkeypatch, kind) -> None:
    monkeypatch.setattr(quantised, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"{kind} needs bitsandbytes: pip install 'pixart\[quant\]'"):
        sample(pipeline, tmp_path / "set", text_encoder_quantization=kind)


@pytest.mark.parametrize(("kind", "error"), [("8bit", 0.06), ("4bit", 0.4)])
def test_a_quantised_text_encoder_is_near_and_smaller(wide_encoder, kind, error) -> None:
    check_quantization(kind)
    exact, ours = (load_text_encoder(str(wide_encoder), quantization=q) for q in ("none", kind))
    assert ours.hash == exact.hash  # of what is stored
    for theirs, states in zip(exact.encode_each(TEXTS), ours.encode_each(TEXTS), strict=True):
        assert 0 < (states - theirs).norm() / theirs.norm() < error
    sizes = [sum(p.nbytes for p in encoder.model.parameters()) for encoder in (ours, exact)]
    assert sizes[0] < 0.6 * sizes[1]


def test_memory_that_cannot_be_had_is_told_with_what_helps(pipeline, tmp_path, monkeypatch) -> None:
    def denoise(*_: object, **__: object) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(drawing, "denoise", denoise)
    with pytest.raises(PixartError, match="out of memory denoising 2 images of 16x16 px: lower batch_size"):
        sample(pipeline, tmp_path / "set")
