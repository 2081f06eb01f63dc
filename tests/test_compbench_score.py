"""T2I-CompBench as a whole: categories, nulls, intervals, missing parts."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_blip
import torch
from compbench_run import make_benchmark, options
from compbench_samples import PROMPTS, write_samples
from scipy import stats
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pixart_core.errors import UserError
from pixart_core.evaluation.compbench.prompts import Prompt
from pixart_core.evaluation.compbench.score import score_compbench as score_all
from pixart_core.evaluation.compbench.summary import interval, others
from pixart_core.evaluation.sample_set import SampleSet, read_sample_set
from pixart_core.progress import Silent
from pixart_core.recipe.compbench import CATEGORIES

HERE = Path(__file__).parent
score_compbench = functools.partial(score_all, device=torch.device("cpu"), batch_size=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compbench")
    make_benchmark(folder)
    return folder


@pytest.fixture(scope="module")
def samples(folder: Path) -> SampleSet:
    return read_sample_set("samples", folder / "samples")


@pytest.fixture(scope="module")
def result(folder: Path, samples: SampleSet) -> dict:
    return score_compbench(samples, options(folder), folder / "cache", Silent())


def image_scores(category: dict) -> dict[str, float]:
    return {image["file"]: image["score"] for row in category["prompts"] for image in row["images"]}


def test_all_categories_are_scored_each_under_its_protocol(result: dict) -> None:
    assert result["missing"] == []
    clip = result["categories"]["non_spatial"]["protocol"].removeprefix("compbench/").removesuffix("@1")
    assert {name: category["protocol"] for name, category in result["categories"].items()} == {
        "color": "compbench/blip24-np8-textblob@1",
        "shape": "compbench/blip24-np8-textblob@1",
        "texture": "compbench/blip24-np8-textblob@1",
        "spatial": "compbench/unidet-2d-textblob@1",
        "3d_spatial": "compbench/unidet-3d-textblob@1",
        "numeracy": "compbench/unidet-numeracy@1",
        "non_spatial": f"compbench/{clip}@1",
        "complex": f"compbench/3in1-blip24-np8-textblob-unidet-2d-{clip}@1",
    }
    # Tiny weights and another reader are nobody's published protocol; numeracy needs neither.
    assert [name for name, category in result["categories"].items() if category["comparable"]] == ["numeracy"]
    for name, category in result["categories"].items():
        assert category["n"] == 2 * len(PROMPTS[name])
        assert category["n_prompts"] == len(PROMPTS[name])
        assert category["partial"] is False


def test_attribute_scores_are_products_of_the_official_arithmetic(result: dict, samples: SampleSet) -> None:
    weights = tiny_blip.official_weights()
    scores = image_scores(result["categories"]["color"])
    phrases = {"a red chair and a blue door": ["a red chair ?", "a blue door ?"],
               "a green boat and a brown bear": ["a green boat ?", "a brown bear ?"]}  # fmt: skip
    words = {word: number for number, word in enumerate(tiny_blip.VOCABULARY)}
    checked = 0
    for sample in samples.samples:
        if sample.prompt in phrases:
            expected = 1.0
            for phrase in phrases[sample.prompt]:
                tokens = [words.get(word, words["[UNK]"]) for word in f"[CLS] {phrase} [SEP]".split()]
                expected *= tiny_blip.answer(weights, samples.picture(sample), tokens)
            assert scores[sample.file] == pytest.approx(expected, abs=3e-4)
            checked += 1
    assert checked == len(scores) == 4
    assert result["categories"]["color"]["score"] == pytest.approx(np.mean(list(scores.values())), abs=1e-4)


def test_clip_scores_are_raw_cosines_of_transformers_own_pipeline(
    result: dict, samples: SampleSet, folder: Path
) -> None:
    model = CLIPModel.from_pretrained(folder / "clip").double().eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "clip")
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    scores = image_scores(result["categories"]["non_spatial"])
    for sample in samples.samples:
        if sample.file in scores:
            pixels = processor(images=samples.picture(sample), return_tensors="pt")["pixel_values"].double()
            tokens = tokenizer(sample.prompt, return_tensors="pt")
            with torch.no_grad():
                output = model(pixel_values=pixels, **tokens)
            cosine = torch.cosine_similarity(output.image_embeds, output.text_embeds).item()
            assert scores[sample.file] == pytest.approx(cosine, abs=1e-4)
    assert len(scores) == 4


def by_prompt(result: dict, category: str) -> dict[str, float]:
    return {row["prompt"]: row["score"] for row in result["categories"][category]["prompts"]}


def test_spatial_scores_follow_the_rules_on_dumped_boxes(result: dict) -> None:
    assert by_prompt(result, "spatial") == {
        "a dog on the left of a chair": pytest.approx(0.25 * 1.7 + 0.5),
        "a bowl on the top of a woman": pytest.approx(0.25 * 1.6 + 0.5),
        "a cup near a cat": 0.0,
    }
    # Boxes 100 x 100, shifted by 10: they share 90 / 110. The chair's rows (its x) are less near.
    assert by_prompt(result, "3d_spatial") == {
        "a dog in front of a chair": pytest.approx(0.25 * 1.7 + 0.5),
        "a cat behind a bowl": pytest.approx(0.25 * 1.7),
    }
    assert by_prompt(result, "numeracy") == {"three dogs": 1.0, "two cats and a dog": 0.75}


def test_ceilings_come_from_the_labels_of_the_detector(result: dict) -> None:
    """It knows no cup near a cat? It does: both are in its vocabulary, so all prompts could score 1."""
    ceilings = {name: category["ceiling"] for name, category in result["categories"].items()}
    assert ceilings["spatial"] == ceilings["3d_spatial"] == ceilings["numeracy"] == 1.0
    assert ceilings["color"] is ceilings["non_spatial"] is ceilings["complex"] is None


def test_complex_is_the_mean_of_what_the_prompt_speaks_of(
    result: dict, folder: Path, samples: SampleSet
) -> None:
    texts = dict.fromkeys(CATEGORIES, PROMPTS["complex"])
    (folder / "all_complex").mkdir(exist_ok=True)
    for category, lines in texts.items():
        (folder / "all_complex" / f"{category}_val.txt").write_text("\n".join(lines))
    chosen = options(folder, prompts=str(folder / "all_complex"), categories=("color", "complex"))
    alone = score_compbench(samples, chosen, folder / "cache", Silent())["categories"]
    attributes, whole = image_scores(alone["color"]), alone["complex"]["prompts"]
    places = {PROMPTS["complex"][0]: 0.25 * 1.8, PROMPTS["complex"][2]: 0.25 * 1.3 + 0.5}
    places[PROMPTS["complex"][0]] = 0.0  # "on top of" is no place that scores: 0.45 is below 0.5
    for row in whole:
        for image in row["images"]:
            parts = [attributes[image["file"]]]
            if row["prompt"] in places:
                parts.append(places[row["prompt"]])
            cosines = [reason for reason in image["reasons"] if reason.startswith("cosine")]
            parts += [float(reason.rsplit(": ", 1)[1]) for reason in cosines]
            assert len(parts) == {0: 2, 1: 2, 2: 3}[PROMPTS["complex"].index(row["prompt"])]
            assert image["score"] == pytest.approx(np.mean(parts), abs=3e-4)
    assert "The cat slept on the blanket ." in whole[1]["images"][0]["reasons"][-1]  # no adjectives


def test_true_pairs_beat_the_null_where_images_show_their_prompts(result: dict) -> None:
    for name in ("spatial", "3d_spatial", "numeracy"):
        category = result["categories"][name]
        assert category["score"] - category["null"] > 0.3
        assert category["score_minus_null"] == pytest.approx(category["score"] - category["null"], abs=1e-4)


def test_an_image_that_all_prompts_fit_gains_nothing_over_the_null(
    folder: Path, samples: SampleSet, tmp_path: Path
) -> None:
    """A detector that finds everything everywhere: score and null are the same."""
    things = ["dog", "chair", "cup", "cat", "bowl", "person"]
    row = {"labels": things, "scores": [1.0] * 6, "boxes": [[0, 0, 9, 9]] * 6}
    lines = [json.dumps(row | {"image": sample.file}) for sample in samples.samples]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    chosen = options(folder, detections=str(tmp_path / "all.jsonl"), categories=("spatial",))
    category = score_compbench(samples, chosen, folder / "cache", Silent())["categories"]["spatial"]
    assert category["score"] > 0.5
    assert category["score_minus_null"] == pytest.approx(0, abs=1e-9)
    assert category["ceiling"] is None  # the dump does not tell its labels


def test_no_image_meets_its_own_prompt_in_the_null() -> None:
    for count in (2, 3, 7, 300):
        prompts = [Prompt("color", number, f"prompt {number}") for number in range(count)]
        for seed in range(5):
            paired = others(prompts, seed)
            assert paired is not None
            assert all(own != other for own, other in zip(prompts, paired, strict=True))
            assert set(paired) == set(prompts)
    assert others(prompts[:1], 0) is None


def test_intervals_of_equal_groups_are_student_s_t_over_their_means() -> None:
    values = np.random.default_rng(0).random((40, 10))
    means = values.mean(1)
    expected = stats.t.interval(0.95, 39, loc=means.mean(), scale=stats.sem(means))
    assert interval(list(values)) == pytest.approx(expected, abs=5e-5 + 1e-9)
    assert interval([values[0]]) is None
    assert interval([np.ones(3), np.zeros(3)], least=0.0) == [0.0, 1.0]  # t of one degree of freedom is wide


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    """1000 draws of 60 prompts with 1 to 10 images, whose prompts differ more than their images."""
    random, hits = np.random.default_rng(1), 0
    for _ in range(1000):
        groups = [random.normal(random.normal(0, 1), 0.5, random.integers(1, 11)) for _ in range(60)]
        low, high = interval(groups)
        hits += low <= 0 <= high
    assert 925 <= hits <= 972  # 950 +- 3.2 standard deviations


def test_one_prompt_has_neither_null_nor_interval(folder: Path, tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples", {"numeracy": ["three dogs"]})
    dump = {"image": "images/000000.png", "labels": [], "scores": [], "boxes": []}
    (tmp_path / "d.jsonl").write_text(
        json.dumps(dump) + "\n" + json.dumps(dump | {"image": "images/000001.png"})
    )
    chosen = options(folder, detections=str(tmp_path / "d.jsonl"), categories=("numeracy",))
    category = score_compbench(samples, chosen, tmp_path / "cache", Silent())["categories"]["numeracy"]
    assert category["null"] is category["ci95"] is category["score_minus_null"] is None
    assert category["partial"] is True  # one prompt of two


def test_fewer_images_than_asked_for_mark_the_result_partial(folder: Path, samples: SampleSet) -> None:
    chosen = options(folder, images_per_prompt=3, categories=("numeracy",))
    scored = score_compbench(samples, chosen, folder / "cache", Silent())
    assert scored["categories"]["numeracy"]["partial"] is True


def test_missing_parts_are_named_with_sizes_and_the_rest_is_scored(folder: Path, samples: SampleSet) -> None:
    chosen = options(folder, blip=None, detections=None)
    said: list[str] = []

    class Listener(Silent):
        def say(self, message: str) -> None:
            said.append(message)

    scored = score_compbench(samples, chosen, folder / "cache", Listener())
    assert list(scored["categories"]) == ["non_spatial"]
    parts = {part["part"]: part for part in scored["missing"]}
    weights = parts["BLIP-VQA weights (model_base_vqa_capfilt_large.pth)"]
    assert weights["categories"] == ["color", "shape", "texture", "complex"]
    assert weights["size"] == "1.4 GB"
    assert "compbench.blip=" in weights["fix"]
    assert parts["detections of the official UniDet"]["categories"] == [
        "spatial", "3d_spatial", "numeracy", "complex",
    ]  # fmt: skip
    assert len(said) == 2


def test_categories_without_images_are_missing_too(folder: Path, tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples", {"non_spatial": PROMPTS["non_spatial"]})
    chosen = options(folder, categories=("color", "spatial", "non_spatial"), blip=None)
    scored = score_compbench(samples, chosen, folder / "cache", Silent())
    assert list(scored["categories"]) == ["non_spatial"]
    # Images alone would not do for color.
    assert [(part["part"], part["categories"]) for part in scored["missing"]] == [
        ("BLIP-VQA weights (model_base_vqa_capfilt_large.pth)", ["color"]),
        ("images of their prompts", ["spatial"]),
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("blip", "nowhere/model.pth"),
        ("clip", "/nowhere"),
        ("detections", "nowhere.jsonl"),
        ("depth", "./no/where"),
    ],
)
def test_a_path_that_is_not_there_is_a_mistake_and_no_missing_part(
    folder: Path, samples: SampleSet, field: str, value: str
) -> None:
    with pytest.raises(UserError, match=rf"compbench\.{field}: {value}"):
        score_compbench(samples, options(folder, **{field: value}), folder / "cache", Silent())


def test_a_damaged_file_is_a_mistake_and_no_missing_part(
    folder: Path, samples: SampleSet, tmp_path: Path
) -> None:
    (tmp_path / "blip.pth").write_bytes((folder / "blip.pth").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"blip\.pth.*truncated"):
        score_compbench(samples, options(folder, blip=str(tmp_path / "blip.pth")), tmp_path / "c", Silent())
