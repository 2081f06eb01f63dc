"""Laws of prompts' tokens: each text is encoded once, before anything is drawn, alike in any company."""

import os
import resource
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import write_tiny_pipeline
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from pixart_core.encoders.text import load_text_encoder
from pixart_core.encoders.tiny_t5 import build_tiny_t5
from pixart_core.errors import PixartError, UserError
from pixart_core.progress import Silent
from pixart_core.recipe.schema import SampleStep
from pixart_core.sampling import loading, prompt_tokens
from pixart_core.sampling.model import load_model
from pixart_core.sampling.prompt_tokens import PromptTokens, encode_prompts
from pixart_core.sampling.sample import run_sampling

FOUR = ["red", "a red circle", "", "two blue squares on a white background"]
TEXTS = FOUR + [f"red {n}" for n in range(66)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("model"))


def encode(pipeline: Path, needed: list[str], folder: Path) -> PromptTokens:
    return encode_prompts(
        TEXTS,
        needed,
        lambda: load_text_encoder(str(pipeline)),
        max_tokens=120,
        dtype=torch.float32,
        folder=folder,
        progress=Silent(),
    )


def sample(pipeline: Path, output: Path, **changes) -> list[bytes]:
    options = {"checkpoint": str(pipeline), "prompts": ("red", "two blue squares"), "num_inference_steps": 2}
    run_sampling(SampleStep(**(options | changes)), output, Silent())
    return [file.read_bytes() for file in sorted((output / "images").iterdir())]


def test_tokens_are_the_last_states_of_the_text_model(pipeline, tmp_path) -> None:
    tokens = encode(pipeline, TEXTS, tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(pipeline / "tokenizer")
    model = T5EncoderModel.from_pretrained(pipeline / "text_encoder")
    for text in TEXTS[:6]:
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(tokens[text], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("needed", [TEXTS[40:41], TEXTS[::7], TEXTS[:33]])
def test_a_text_has_the_same_tokens_whichever_others_are_needed_here(pipeline, tmp_path, needed) -> None:
    all_of_them, some = encode(pipeline, TEXTS, tmp_path), encode(pipeline, needed, tmp_path)
    for text in needed:
        assert torch.equal(some[text], all_of_them[text]), text


def test_only_batches_with_a_needed_text_are_encoded(pipeline, tmp_path, monkeypatch) -> None:
    rows: list[int] = []
    forward = T5EncoderModel.forward

    def counted(self, **given):
        rows.append(len(given["input_ids"]))
        return forward(self, **given)

    monkeypatch.setattr(T5EncoderModel, "forward", counted)
    encode(pipeline, TEXTS[40:42], tmp_path)
    assert rows == [32]
    rows.clear()
    encode(pipeline, TEXTS, tmp_path)
    assert rows == [32, 32, 6]
    rows.clear()
    # Three records a prompt and a negative prompt for all: three texts, encoded together, once.
    sample(pipeline, tmp_path / "set", images_per_prompt=3, negative_prompt="blue", batch_size=2)
    assert rows == [3]


def test_the_text_encoder_is_gone_before_the_transformer_is_loaded(pipeline, tmp_path, monkeypatch) -> None:
    encoders: list[weakref.ref] = []
    alive: list[bool] = []

    def watched_encoder(*arguments, **options):
        encoder = load_text_encoder(*arguments, **options)
        encoders.append(weakref.ref(encoder.model))
        return encoder

    def watched_model(*arguments, **options):
        alive.extend(reference() is not None for reference in encoders)
        return load_model(*arguments, **options)

    monkeypatch.setattr(loading, "load_text_encoder", watched_encoder)
    monkeypatch.setattr(loading, "load_model", watched_model)
    sample(pipeline, tmp_path / "set")
    assert alive == [False]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_tokens_on_the_disk_are_those_in_memory_and_leave_no_file(
    pipeline, tmp_path, monkeypatch, dtype
) -> None:
    expected = sample(pipeline, tmp_path / "memory", dtype=dtype)
    monkeypatch.setattr(prompt_tokens, "MOST_IN_MEMORY", 0)
    open_files: list[str] = []
    keep = PromptTokens.keep_in_file

    def watched(self, folder):
        keep(self, folder)
        open_files.append(os.readlink(f"/proc/self/fd/{self._file.fileno()}"))
        assert os.fstat(self._file.fileno()).st_size == self.bytes > 0  # the room is taken

    monkeypatch.setattr(PromptTokens, "keep_in_file", watched)
    assert sample(pipeline, tmp_path / "disk", dtype=dtype) == expected
    (file,) = open_files
    # It had no name while it was used, so even a killed process leaves nothing.
    assert file.startswith(str(tmp_path / "disk"))
    assert file.endswith("(deleted)")
    names = [{path.name for path in (tmp_path / folder).iterdir()} for folder in ("memory", "disk")]
    assert names[0] == names[1]


def test_a_full_disk_is_told_before_anything_is_encoded(pipeline, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(prompt_tokens, "MOST_IN_MEMORY", 0)
    encoded: list[int] = []
    monkeypatch.setattr(T5EncoderModel, "forward", lambda self, **given: encoded.append(1))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Writes beyond the limit fail as those on a full disk do, only with another reason.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(
            PixartError, match=r"cannot keep the prompts' tokens .*: make .* GB of room"
        ) as told:
            encode(pipeline, TEXTS, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert "\n" not in str(told.value)
    assert encoded == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", "is damaged or no safetensors file"),
        ("vae/diffusion_pytorch_model.safetensors", "is truncated or no safetensors file"),
    ],
)
def test_a_truncated_file_is_told_before_the_prompts_are_encoded(
    pipeline, tmp_path, monkeypatch, file, words
) -> None:
    broken = shutil.copytree(pipeline, tmp_path / "broken")
    content = (broken / file).read_bytes()
    (broken / file).write_bytes(content[: len(content) // 2])
    _refuse_encoders(monkeypatch)
    with pytest.raises(UserError, match=words):
        sample(broken, tmp_path / "set")


def test_weights_of_another_shape_are_told_before_the_prompts_are_encoded(
    pipeline, tmp_path, monkeypatch
) -> None:
    broken = shutil.copytree(pipeline, tmp_path / "broken")
    file = broken / "transformer/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file(weights | {"proj_out.bias": weights["proj_out.bias"][1:].clone()}, file)
    _refuse_encoders(monkeypatch)
    with pytest.raises(UserError, match=r"wrong shape: proj_out\.bias"):
        sample(broken, tmp_path / "set")


def _refuse_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("a text encoder was loaded")

    monkeypatch.setattr(loading, "load_text_encoder", loaded)


def test_a_text_encoder_of_another_width_is_refused(pipeline, tmp_path) -> None:
    other = shutil.copytree(pipeline, tmp_path / "other")
    build_tiny_t5(40, width=24, num_heads=2).save_pretrained(other / "text_encoder")
    with pytest.raises(UserError, match=r"takes tokens of width 16, those of its text encoder other have 24"):
        sample(other, tmp_path / "set")
