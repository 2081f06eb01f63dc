"""BLIP-VQA: the official file in transformers' class, asked as the benchmark asks."""

from pathlib import Path

import numpy as np
import pytest
import tiny_blip
import torch
from compbench_samples import noise
from torch import Tensor

from pixart_core.errors import PixartError, UserError
from pixart_core.evaluation.compbench.blip import BlipVqa, product, question_of
from pixart_core.evaluation.compbench.blip_weights import convert_blip_vqa, load_blip

QUESTIONS = [
    ["a red chair?", "the green door?"],
    ["a blue boat?"],
    [],
    ["a wooden table, a bowl?", "cats?", "a red chair?", "dog?"],
]
IMAGES = [noise(number, 30 + 7 * number) for number in range(len(QUESTIONS))]


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return tiny_blip.official_weights()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    folder = tmp_path_factory.mktemp("blip")
    tiny_blip.save_tokenizer(folder / "bert")
    tiny_blip.save_official(folder / "official.pth", weights)
    return folder


@pytest.fixture(scope="module")
def blip(folder: Path) -> BlipVqa:
    model, tokenizer = load_blip(str(folder / "official.pth"), str(folder / "bert"))
    return BlipVqa(model, tokenizer, torch.device("cpu"), batch_size=3)


def test_answers_are_those_of_the_official_arithmetic(
    blip: BlipVqa, weights: dict[str, Tensor], folder: Path
) -> None:
    """In float64, one question at a time, so that neither padding nor batching can matter."""
    found = blip.answers(IMAGES, QUESTIONS)
    words = tiny_blip.VOCABULARY
    spread = []
    for image, questions, answers in zip(IMAGES, QUESTIONS, found, strict=True):
        assert len(answers) == len(questions)
        for question, answer in zip(questions, answers, strict=True):
            split = question.replace("?", " ?").replace(",", " ,").replace("cats", "cat ##s").split()
            tokens = [words.index(word) for word in ("[CLS]", *split, "[SEP]")]
            expected = tiny_blip.answer(weights, image, tokens)
            assert answer == pytest.approx(expected, abs=5e-5 + 2e-5)
            assert answer == round(answer, 4)
            spread.append(answer)
    assert np.ptp(spread) > 0.3  # answers that are all alike would show nothing


def test_answers_do_not_depend_on_what_else_is_asked(blip: BlipVqa) -> None:
    together = blip.answers(IMAGES, QUESTIONS)
    for image, questions, answers in zip(IMAGES, QUESTIONS, together, strict=True):
        alone = [blip.answers([image], [[question]])[0][0] for question in questions]
        assert list(answers) == pytest.approx(alone, abs=1.01e-4)


def test_a_converted_folder_answers_as_the_file(folder: Path, blip: BlipVqa) -> None:
    convert_blip_vqa(folder / "official.pth", folder / "converted", str(folder / "bert"))
    model, tokenizer = load_blip(str(folder / "converted"), "nowhere")
    converted = BlipVqa(model, tokenizer, torch.device("cpu"), batch_size=3)
    assert converted.weights == blip.weights
    assert converted.answers(IMAGES, QUESTIONS) == blip.answers(IMAGES, QUESTIONS)


def test_what_the_hub_s_conversions_get_wrong_is_put_right(folder: Path, blip: BlipVqa) -> None:
    convert_blip_vqa(folder / "official.pth", folder / "hub", str(folder / "bert"))
    config = folder / "hub/config.json"
    text = config.read_text().replace('"num_attention_heads": 2', '"num_attention_heads": 1')
    assert "1e-06" in text
    config.write_text(text.replace("1e-06", "1e-05"))
    model, tokenizer = load_blip(str(folder / "hub"), "nowhere")
    again = BlipVqa(model, tokenizer, torch.device("cpu"), batch_size=3)
    assert again.answers(IMAGES, QUESTIONS) == blip.answers(IMAGES, QUESTIONS)


def test_the_protocol_names_the_image_size_and_tiny_weights_are_not_official(blip: BlipVqa) -> None:
    assert (blip.name, blip.official) == ("blip24", False)


def test_questions_are_lower_case_without_marks_and_50_words_long() -> None:
    assert question_of('The "Red" chair (old): #1!') == "the red chair old 1?"
    assert question_of("a cat ") == "a cat ?"
    assert question_of("word " * 60) == " ".join(["word"] * 50)


@pytest.mark.parametrize(
    ("answers", "score"),
    [((), 1.0), ((0.5,), 0.5), ((0.3333, 0.3333), 0.1111), ((0.9999,) * 8, 0.9992), ((0.0, 1.0), 0.0)],
)
def test_the_score_is_the_product_to_4_places_and_no_question_scores_1(
    answers: tuple[float, ...], score: float
) -> None:
    assert product(answers) == score


def broken(name: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    changed = dict(weights)
    if name == "missing":
        del changed["visual_encoder.blocks.1.attn.qkv.bias"]
    if name == "surplus":
        changed["itm_head.weight"] = torch.zeros(2, 2)
    if name == "shape":
        changed["text_decoder.cls.predictions.bias"] = torch.zeros(7)
    if name == "untied":
        changed["text_decoder.cls.predictions.decoder.weight"] = torch.zeros(tiny_blip.WORDS, tiny_blip.WIDTH)
    if name == "positions":
        changed["text_encoder.embeddings.position_ids"] = torch.zeros(1, 64)
    if name == "other":
        changed = {"conv.weight": torch.zeros(3, 3)}
    return changed


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "lacks 1 tensors, e.g. vision_model.encoder.layers.1.self_attn.qkv.bias"),
        ("surplus", "belong to no BLIP-VQA, e.g. itm_head.weight"),
        ("shape", r"predictions.bias is \(7,\)"),
        ("untied", "differs from the word embeddings"),
        ("positions", "does not count from 0"),
        ("other", "is no BLIP-VQA"),
    ],
)
def test_every_tensor_is_accounted_for(
    tmp_path: Path, weights: dict[str, Tensor], name: str, message: str
) -> None:
    path = tiny_blip.save_official(tmp_path / "model.pth", broken(name, weights))
    with pytest.raises(UserError, match=message):
        load_blip(str(path), "nowhere")


def test_a_truncated_file_and_a_pickle_with_code_are_refused(tmp_path: Path, folder: Path) -> None:
    whole = (folder / "official.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated"):
        load_blip(str(tmp_path / "cut.pth"), "nowhere")
    torch.save({"model": {"a": torch.zeros(1)}, "code": pytest.raises}, tmp_path / "code.pth")
    with pytest.raises(UserError, match="not loaded"):
        load_blip(str(tmp_path / "code.pth"), "nowhere")


def test_weights_that_answer_with_no_number_are_reported(folder: Path, weights: dict[str, Tensor]) -> None:
    changed = weights | {"visual_encoder.cls_token": torch.full((1, 1, tiny_blip.WIDTH), torch.nan)}
    path = tiny_blip.save_official(folder / "nan.pth", changed)
    model, tokenizer = load_blip(str(path), str(folder / "bert"))
    with pytest.raises(PixartError, match="damaged"):
        BlipVqa(model, tokenizer, torch.device("cpu"), 2).answers(IMAGES[:1], QUESTIONS[:1])
