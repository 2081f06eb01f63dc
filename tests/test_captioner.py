"""Vision-language models of several classes, compared with transformers' own use of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from broken_images import encode, noise
from scipy.stats import chisquare
from tiny_llava import save_tiny_llava
from tiny_vlms import save_qwen2_vl_config, save_tiny_blip2, save_tiny_idefics3

from pixart_core.data.scan import manifest_for
from pixart_core.encoders import captioner
from pixart_core.encoders.caption_local import order_by_length
from pixart_core.encoders.caption_rows import prompt_for
from pixart_core.encoders.captioner import SeededSampling, VisionLanguageModel, load_processor, prompt_lengths
from pixart_core.errors import PixartError, UserError
from pixart_core.progress import Silent
from pixart_core.recipe.caption import CaptionStep

PROMPT = "Describe this image"
PICTURES = [noise(), noise(120, 30, seed=1), noise(30, 120, seed=2), noise(seed=3)]
CLASSES: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    # what saves it, its class, what it reads for one image
    "llava": (
        save_tiny_llava, "LlavaForConditionalGeneration", "USER: <image> Describe this image ASSISTANT:",
    ),
    "llava-without-template": (
        lambda folder: save_tiny_llava(folder, chat_template=False),
        "LlavaForConditionalGeneration",
        "USER: <image>\nDescribe this image ASSISTANT:",
    ),
    "idefics3": (
        save_tiny_idefics3, "Idefics3ForConditionalGeneration", "USER: <image>Describe this image ASSISTANT:",
    ),
    "blip2": (save_tiny_blip2, "Blip2ForConditionalGeneration", "Describe this image"),
}  # fmt: skip


def load(folder: Path, **options: Any) -> VisionLanguageModel:
    given: dict[str, Any] = {"dtype": "bf16", "device": torch.device("cpu"), "max_new_tokens": 6}
    return VisionLanguageModel.load(str(folder), **given | options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: save(folder / name) for name, (save, _, _) in CLASSES.items()}


@pytest.mark.parametrize("name", CLASSES)
def test_a_batch_says_what_the_models_own_class_says_of_each_image(saved: dict[str, Path], name: str) -> None:
    """Oracle: the class by its name, one image at a time, without padding."""
    _, class_name, text = CLASSES[name]
    model = load(saved[name])
    assert model.format_prompt(PROMPT) == text
    answers = model.describe(PICTURES, [PROMPT] * len(PICTURES))
    oracle = getattr(transformers, class_name).from_pretrained(saved[name], dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(saved[name])
    for picture, answer in zip(PICTURES, answers, strict=True):
        inputs = processor(images=[[picture]], text=[text], return_tensors="pt")
        tokens = oracle.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
        new = tokens[inputs["input_ids"].shape[1] :]
        assert answer.text == processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        assert answer.cut == (oracle.generation_config.eos_token_id not in new)
    assert len({answer.text for answer in answers}) > 1


@pytest.mark.parametrize("name", ["llava", "idefics3"])
def test_prompts_of_different_length_share_a_batch_without_changing_a_word(
    saved: dict[str, Path], name: str
) -> None:
    model = load(saved[name])
    prompts = [PROMPT, "Describe", f"{PROMPT} {'red circle ' * 9}", PROMPT]
    together = model.describe(PICTURES, prompts)
    assert together == [model.describe([p], [q])[0] for p, q in zip(PICTURES, prompts, strict=True)]


@pytest.mark.parametrize("name", ["llava", "idefics3"])
def test_lengths_rank_inputs_as_the_processor_makes_them(saved: dict[str, Path], name: str) -> None:
    processor = load_processor(str(saved[name]))
    prompts = [PROMPT, f"{PROMPT} {'red ' * 20}", PROMPT, "Describe"]
    lengths = prompt_lengths(processor, prompts, [(image.height, image.width) for image in PICTURES])
    model = load(saved[name])
    real = model.prepare(PICTURES, prompts)["attention_mask"].sum(1).tolist()
    assert sorted(range(4), key=lambda n: lengths[n]) == sorted(range(4), key=lambda n: real[n])


def test_images_are_captioned_by_length_the_longest_first(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02d}.png").write_bytes(encode(noise(seed=number)))
        (folder / f"{number:02d}.txt").write_text("red " * (1 + number * 5 % 12))
    step = CaptionStep(
        data=str(folder), captioner=str(saved["llava"]), with_original_caption=True, batch_size=3
    )
    manifest = manifest_for(step, tmp_path / "manifest", Silent())
    everything = np.arange(12)
    words = np.array([len(str(record.caption).split()) for record in manifest.records])
    order = order_by_length(step, manifest, everything, lambda record: prompt_for(step, record))
    assert words[order].tolist() == list(range(12, 0, -1))
    some = order_by_length(step, manifest, np.array([7, 2, 5]), lambda record: prompt_for(step, record))
    assert words[some].tolist() == sorted(words[[7, 2, 5]], reverse=True)
    # Where all are alike they stay in the order of the manifest.
    assert order_by_length(step, manifest, everything, lambda _: PROMPT).tolist() == everything.tolist()


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    model = load(saved["llava"], say=said.append)
    whole = model.describe(PICTURES, [PROMPT] * 4, seeds=[1, 2, 3, 4], temperature=2.0)
    real, sizes = model.model.generate, []

    def limited(**inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if len(inputs["input_ids"]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(**inputs)

    monkeypatch.setattr(model.model, "generate", limited)
    room = 1
    assert model.describe(PICTURES, [PROMPT] * 4, seeds=[1, 2, 3, 4], temperature=2.0) == whole
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    assert said[0] == "out of memory with 4 images: going on with 2; lower batch_size"
    room = 0
    with pytest.raises(PixartError, match=r"out of memory with a single image of 40x30 px.*are kept"):
        model.describe(PICTURES, [PROMPT] * 4)


def test_seeded_draws_follow_the_softmax_and_belong_to_their_row() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    number, temperature = 4000, 1.7
    drawn = SeededSampling(list(range(number)), temperature)(torch.empty(0), logits.repeat(number, 1)).argmax(
        1
    )
    expected = torch.softmax(logits.double() / temperature, 0).numpy() * number
    assert chisquare(torch.bincount(drawn, minlength=4).numpy(), expected).pvalue > 0.001
    alone = SeededSampling([7], temperature)(torch.empty(0), logits[None])
    among = SeededSampling([3, 7, 5], temperature)(torch.empty(0), logits.repeat(3, 1))
    assert torch.equal(alone[0], among[1])
    assert not torch.equal(among[0], among[1])


def test_other_seeds_give_other_words_and_the_same_seed_the_same(saved: dict[str, Path]) -> None:
    model = load(saved["llava"])
    images, prompts = [PICTURES[0]] * 6, [PROMPT] * 6
    drawn = model.describe(images, prompts, seeds=[1, 1, 2, 3, 4, 5], temperature=5.0)
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 3
    assert model.describe(images[:1], prompts[:1], seeds=[3], temperature=5.0) == drawn[3:4]


def test_what_cannot_be_loaded_is_one_clear_line(saved: dict[str, Path], tmp_path: Path) -> None:
    cut = save_tiny_llava(tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    partial = save_tiny_llava(tmp_path / "partial")
    from safetensors.torch import load_file, save_file

    tensors = load_file(partial / "model.safetensors")
    tensors.pop(next(name for name in tensors if "mlp.down_proj" in name))
    save_file(tensors, partial / "model.safetensors", {"format": "pt"})
    bert = tmp_path / "bert"
    transformers.BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1).save_pretrained(bert)
    for folder, message in (
        (cut, "cannot be loaded as an image-text-to-text model"),
        (partial, "the captioner lacks 1 weights, e.g. .*mlp.down_proj"),
        (bert, "cannot be loaded as an image-text-to-text model|no processor for both images and text"),
        (tmp_path, "holds neither config.json"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(captioner.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_model_that_takes_videos_says_that_it_needs_torchvision(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs torchvision: pip install torchvision"):
        load(save_qwen2_vl_config(tmp_path / "qwen"))


def test_quantization_asks_for_a_gpu_and_bitsandbytes(saved: dict[str, Path], monkeypatch) -> None:
    with pytest.raises(UserError, match="quantization 8bit needs a GPU; this is cpu"):
        load(saved["llava"], quantization="8bit")
    monkeypatch.setattr(captioner, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs bitsandbytes: pip install 'pixart\[quant\]'"):
        load(saved["llava"], quantization="4bit", device=torch.device("cuda"))
    with pytest.raises(ValueError, match="with api_base the server decides"):
        CaptionStep(data="x", quantization="8bit", api_base="http://localhost/v1")
