"""Detectors and depth: dumps read as they are, models as transformers' own post-processing reads them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from compbench_samples import noise
from PIL import Image
from tiny_detectors import save_dpt, save_owlv2, scrambled
from torch import nn
from transformers import (
    BertTokenizerFast,
    CLIPTokenizer,
    DPTForDepthEstimation,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    Owlv2ForObjectDetection,
    Owlv2Processor,
    SwinConfig,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

from pixart_core.errors import UserError
from pixart_core.evaluation.compbench.boxes import Box, frame_of
from pixart_core.evaluation.compbench.depth import load_depth, mean_depth, read_depth
from pixart_core.evaluation.compbench.detections import read_detections
from pixart_core.evaluation.compbench.detectors import load_detector

CPU = torch.device("cpu")
LABELS = ["bowl", "cat", "dog"]
IMAGE = noise(0, 48).resize((48, 32))


def dump(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


ROW = {"image": "color/samples/a dog_000000.png", "labels": ["dog", "cat"], "scores": [0.4, 0.9],
       "boxes": [[0, 0, 10, 10], [5, 5, 20.5, 30]]}  # fmt: skip


def test_a_dump_comes_back_highest_score_first_under_path_and_name(tmp_path: Path) -> None:
    found = read_detections(dump(tmp_path / "d.jsonl", [{"vocabulary": ["dog", "cat", "car"]}, ROW]))
    boxes = (Box("cat", 0.9, (5, 5, 20.5, 30)), Box("dog", 0.4, (0, 0, 10, 10)))
    assert found.of(["images/000000.png", "color/samples/a dog_000000.png"]) == boxes
    assert found.of(["a dog_000000.png"]) == boxes
    assert found.vocabulary == {"dog", "cat", "car"}
    with pytest.raises(UserError, match=r"no detections of images/1\.png"):
        found.of(["images/1.png", "1.png"])


@pytest.mark.parametrize(
    "change",
    [{"labels": ["dog"]}, {"scores": [0.4, 1.5]}, {"scores": [0.4, "x"]},
     {"boxes": [[0, 0, 1], [0, 0, 1, 1]]}, {"boxes": [[9, 0, 1, 1], [0, 0, 1, 1]]},
     {"image": None, "labels": None}],
)  # fmt: skip
def test_a_line_that_is_no_detection_is_named(tmp_path: Path, change: dict) -> None:
    path = dump(tmp_path / "d.jsonl", [ROW, ROW | change])
    with pytest.raises(UserError, match=r"d\.jsonl:2: no detections"):
        read_detections(path)


def test_an_empty_or_missing_dump_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no detections"):
        read_detections(tmp_path / "d.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_detections(tmp_path / "nowhere.jsonl")


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_owlv2(tmp_path_factory.mktemp("tiny-owlv2"))


def in_frame(boxes: torch.Tensor) -> np.ndarray:
    width, height = frame_of(*IMAGE.size)
    return boxes.numpy() * np.array([width / 48, height / 32] * 2)


def test_owlv2_finds_what_transformers_own_post_processing_finds(owlv2: Path) -> None:
    images, tokenizer = Owlv2ImageProcessorPil.from_pretrained(owlv2), CLIPTokenizer.from_pretrained(owlv2)
    processor = Owlv2Processor(images, tokenizer)
    model = Owlv2ForObjectDetection.from_pretrained(owlv2).eval()
    queries = [[f"a photo of a {label}" for label in LABELS]]
    tokens = tokenizer(queries[0], padding="max_length", truncation=True, max_length=24, return_tensors="pt")
    pixels = images(images=IMAGE, return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens, **pixels)
    expected = processor.post_process_grounded_object_detection(
        output, threshold=0.4, target_sizes=[(32, 48)], text_labels=[LABELS]
    )[0]

    found = load_detector("owlv2", str(owlv2), 0.4, CPU).detect(IMAGE, LABELS)
    assert len(found) == len(expected["scores"]) > 3
    order = torch.argsort(expected["scores"], descending=True)
    assert [box.score for box in found] == pytest.approx(expected["scores"][order].tolist(), abs=1e-5)
    assert [box.label for box in found] == [expected["text_labels"][at] for at in order]
    np.testing.assert_allclose(
        [box.xyxy for box in found], in_frame(expected["boxes"][order]), atol=2e-3 * 48
    )


def test_a_detector_may_find_nothing_and_its_name_holds_the_threshold(owlv2: Path) -> None:
    detector = load_detector("owlv2", str(owlv2), 1.0, CPU)
    assert detector.detect(IMAGE, LABELS) == []
    assert detector.name.startswith("tiny-owlv2")
    assert detector.name.endswith("-t1")


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-grounding-dino")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "bowl", "cat", "dog", "##s", "hot"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    backbone = SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[1, 1, 1], num_heads=[1, 1, 1], window_size=2,
        out_features=["stage2", "stage3"], out_indices=[2, 3],
    )  # fmt: skip
    text = {"model_type": "bert", "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 96}  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=backbone, text_config=text, d_model=32, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
        num_queries=12, num_feature_levels=2, max_text_len=96, encoder_n_points=2, decoder_n_points=2,
        disable_custom_kernels=True,
    )  # fmt: skip
    scrambled(GroundingDinoForObjectDetection(config), 0.2).save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 48}).save_pretrained(folder)
    return folder


def test_grounding_dino_finds_the_boxes_that_transformers_finds(grounding_dino: Path) -> None:
    """Its own post-processing keeps the same candidates; their labels may be mixtures of phrases."""
    images = GroundingDinoImageProcessorPil.from_pretrained(grounding_dino)
    tokenizer = BertTokenizerFast.from_pretrained(grounding_dino)
    processor = GroundingDinoProcessor(images, tokenizer)
    model = GroundingDinoForObjectDetection.from_pretrained(grounding_dino).eval()
    tokens = tokenizer("bowl. cat. dog.", return_tensors="pt")
    with torch.no_grad():
        output = model(**images(images=IMAGE, return_tensors="pt"), **tokens)
    everything = processor.post_process_grounded_object_detection(
        output, tokens["input_ids"], threshold=0.0, target_sizes=[(32, 48)]
    )[0]
    words = output.logits[0].sigmoid()[:, [1, 3, 5]]  # [CLS] bowl . cat . dog . [SEP]

    found = load_detector("grounding-dino", str(grounding_dino), 0.0, CPU).detect(IMAGE, LABELS)
    assert len(found) == len(words) == 12
    order = torch.argsort(words.max(1).values, descending=True, stable=True)
    assert [box.score for box in found] == pytest.approx(words.max(1).values[order].tolist(), abs=1e-5)
    assert [box.label for box in found] == [LABELS[at] for at in words.max(1).indices[order]]
    np.testing.assert_allclose([box.xyxy for box in found], in_frame(everything["boxes"][order]), atol=0.05)


@pytest.mark.parametrize("kind", ["owlv2", "grounding-dino"])
def test_nothing_is_found_of_prompts_that_name_no_object(request: pytest.FixtureRequest, kind: str) -> None:
    model = request.getfixturevalue(kind.replace("-", "_"))
    assert load_detector(kind, str(model), 0.0, CPU).detect(IMAGE, []) == []  # type: ignore[arg-type]


def test_a_label_of_several_tokens_scores_as_its_best_one(grounding_dino: Path) -> None:
    detector = load_detector("grounding-dino", str(grounding_dino), 0.0, CPU)
    scores, _ = detector.find(IMAGE, ["hot dogs", "cat"])
    tokenizer = BertTokenizerFast.from_pretrained(grounding_dino)
    model = GroundingDinoForObjectDetection.from_pretrained(grounding_dino).eval()
    images = GroundingDinoImageProcessorPil.from_pretrained(grounding_dino)
    with torch.no_grad():
        output = model(**images(images=IMAGE, return_tensors="pt"),
                       **tokenizer("hot dogs. cat.", return_tensors="pt"))  # fmt: skip
    tokens = output.logits[0].sigmoid()
    torch.testing.assert_close(scores[:, 0], tokens[:, 1:4].max(1).values)  # hot dog ##s
    torch.testing.assert_close(scores[:, 1], tokens[:, 5])


def test_more_labels_than_one_text_holds_are_asked_in_turn(grounding_dino: Path) -> None:
    detector = load_detector("grounding-dino", str(grounding_dino), 0.0, CPU)
    labels = ["bowl"] * 20 + ["cat"] * 20
    scores, places = detector.find(IMAGE, labels)
    assert scores.shape == (24, 40)
    assert places.shape == (24, 4)
    # Each pass knows its own labels alone.
    assert (scores[:12, 32:] == 0).all()
    assert (scores[12:, :32] == 0).all()


@pytest.fixture(scope="module")
def dpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dpt(tmp_path_factory.mktemp("tiny-dpt"))


def test_depth_is_seen_at_480_pixels_and_stored_as_the_official_code_stores_it(dpt: Path) -> None:
    """Against the same steps with transformers' class and a stored PNG that is read again."""
    model = DPTForDepthEstimation.from_pretrained(dpt).eval()
    pixels = np.asarray(IMAGE.resize((480, 480), Image.Resampling.BILINEAR), dtype=np.float32) / 127.5 - 1
    with torch.no_grad():
        depth = model(torch.from_numpy(pixels).permute(2, 0, 1)[None]).predicted_depth[0]
    depth = (depth - depth.min()) / (depth.max() - depth.min())
    whole = nn.functional.interpolate(depth[None, None], (32, 48), mode="bilinear", align_corners=True)[0, 0]
    stored = Image.fromarray(np.floor(255 * whole.numpy()).clip(0, 255).astype(np.uint8))
    expected = np.asarray(stored.resize(frame_of(48, 32), Image.Resampling.BILINEAR)) / 255

    found = load_depth(str(dpt), CPU)
    estimated = found.estimate(IMAGE)
    assert estimated.shape == expected.shape == (320, 480)
    assert np.abs(estimated - expected).max() <= 1.01 / 255  # a step where a value lies on its edge
    assert np.ptp(estimated) > 0.5
    assert found.name.startswith("-tiny-dpt")


def test_stored_depth_maps_are_found_by_path_or_name(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    stored = Image.new("L", (64, 64), 51)
    stored.save(tmp_path / "samples/a dog_000003.png")
    depth = read_depth(tmp_path / "samples", ["images/000000.png", "3d_spatial/samples/a dog_000003.png"])
    assert depth.shape == (479, 479)
    np.testing.assert_allclose(depth, 0.2)
    with pytest.raises(UserError, match=r"no depth map of images/1\.png"):
        read_depth(tmp_path, ["images/1.png"])


def test_mean_depth_reads_rows_by_x_as_the_official_code_does() -> None:
    depth = np.zeros((10, 20), dtype=np.float32)
    depth[2:4, 5:9] = 1  # rows 2 and 3: as the rules read it, x 2..4 and y 5..9
    assert mean_depth(depth, Box("dog", 1, (2.9, 5.9, 4.2, 9.9))) == 1.0
    assert mean_depth(depth, Box("dog", 1, (0, 5, 4, 9))) == 0.5
    assert math.isnan(mean_depth(depth, Box("dog", 1, (12, 0, 19, 9))))  # beyond the last row


@pytest.mark.parametrize("kind", ["owlv2", "grounding-dino"])
def test_another_model_is_no_detector(dpt: Path, kind: str) -> None:
    with pytest.raises(UserError, match="tiny-dpt"):
        load_detector(kind, str(dpt), 0.3, CPU)  # type: ignore[arg-type]
