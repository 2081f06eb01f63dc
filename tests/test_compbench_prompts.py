"""T2I-CompBench's prompts and its folders of images."""

from collections import Counter
from pathlib import Path

import datasets
import pytest
from compbench_samples import PROMPTS, noise, write_prompts, write_samples
from huggingface_hub import HfApi

from pixart_core.errors import UserError
from pixart_core.evaluation.compbench.layout import (
    export_official_layout,
    images_of_prompts,
    is_official_layout,
    read_official_layout,
)
from pixart_core.evaluation.compbench.prompts import Prompt, prompt_key, read_prompts
from pixart_core.recipe.compbench import CATEGORIES

OFFICIAL = Path(__file__).parents[2] / "shared/data/compbench"


def test_line_ends_blanks_and_empty_lines_are_no_part_of_a_prompt(tmp_path: Path) -> None:
    read = read_prompts(str(write_prompts(tmp_path)), CATEGORIES)
    assert {name: [prompt.text for prompt in prompts] for name, prompts in read.items()} == PROMPTS
    assert [prompt.index for prompt in read["spatial"]] == [0, 1, 2]


def test_complex_prompts_say_where_or_what_or_both(tmp_path: Path) -> None:
    read = read_prompts(str(write_prompts(tmp_path)), ["complex"])["complex"]
    assert [prompt.kind for prompt in read] == ["spatial", "action", "spatial-action"]


def test_the_benchmarks_own_lists_of_kinds_go_before_the_rule(tmp_path: Path) -> None:
    write_prompts(tmp_path)
    (tmp_path / "complex_val_spatial.txt").write_text(f"{PROMPTS['complex'][1]}\n")
    (tmp_path / "complex_val_action.txt").write_text(f"{PROMPTS['complex'][2].upper()}\n")
    read = read_prompts(str(tmp_path), ["complex"])["complex"]
    assert [prompt.kind for prompt in read] == ["spatial-action", "spatial", "action"]


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official prompts are not here")
def test_the_official_prompts_are_300_a_category_and_complex_is_212_58_30() -> None:
    read = read_prompts(str(OFFICIAL), CATEGORIES)
    assert {name: len(prompts) for name, prompts in read.items()} == dict.fromkeys(CATEGORIES, 300)
    kinds = Counter(prompt.kind for prompt in read["complex"])
    assert kinds == {"action": 212, "spatial": 58, "spatial-action": 30}
    keys = {prompt_key(prompt.text) for prompts in read.values() for prompt in prompts}
    assert len(keys) == 2400


def test_prompts_come_from_the_configurations_of_a_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, configuration: str) -> datasets.DatasetDict:
        if configuration != "color_val":
            raise ValueError(f"BuilderConfig {configuration} not found")
        rows = datasets.Dataset.from_dict({"text": [f"{text}\r" for text in PROMPTS["color"]]})
        return datasets.DatasetDict({"val": rows})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: None)
    read = read_prompts("someone/compbench", ["color"])
    assert [prompt.text for prompt in read["color"]] == PROMPTS["color"]
    with pytest.raises(UserError, match=r"shape_val.*hub"):
        read_prompts("someone/compbench", ["shape"])


def test_without_a_network_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def refuse(self: HfApi, name: str, **_: object) -> None:
        asked.append(name)
        raise ConnectionError("no network")

    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("tried all the same"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UserError, match=r"someone/compbench \(color_val\).*no network"):
        read_prompts("someone/compbench", ["color", "shape"])
    assert asked == ["someone/compbench"]
    # What an earlier run downloaded is left to `datasets`, which has it.
    (tmp_path / "someone___compbench").mkdir()
    with pytest.raises(pytest.fail.Exception, match="tried all the same"):
        read_prompts("someone/compbench", ["color"])


@pytest.mark.parametrize(("content", "message"), [(b"\r\n \n", "no prompts"), (b"\xff\xfe\x00", "as text")])
def test_an_empty_or_binary_prompt_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "color_val.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"color_val\.txt.*{message}"):
        read_prompts(str(tmp_path), ["color"])


def test_a_missing_category_or_folder_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "color_val.txt").write_text("a red dog\n")
    with pytest.raises(UserError, match=r"shape_val\.txt: no such file"):
        read_prompts(str(tmp_path), ["color", "shape"])
    with pytest.raises(UserError, match="no folder"):
        read_prompts(str(tmp_path / "nowhere"), ["color"])


def test_samples_are_found_by_their_prompts(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples")
    prompts = read_prompts(str(write_prompts(tmp_path / "prompts")), CATEGORIES)
    found = images_of_prompts(samples, prompts)
    assert {name: [len(entry.samples) for entry in entries] for name, entries in found.items()} == {
        name: [2] * len(texts) for name, texts in PROMPTS.items()
    }
    assert all(
        sample.prompt == entry.prompt.text
        for entries in found.values() for entry in entries for sample in entry.samples
    )  # fmt: skip


def test_samples_of_other_prompts_are_no_benchmark(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples", {"color": ["a red circle"]})
    prompts = read_prompts(str(write_prompts(tmp_path / "prompts")), ["color"])
    with pytest.raises(UserError, match="no sample has a prompt of T2I-CompBench"):
        images_of_prompts(samples, prompts)


def test_the_official_layout_comes_back_as_it_was_written(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples")
    prompts = read_prompts(str(write_prompts(tmp_path / "prompts")), CATEGORIES)
    written = export_official_layout(samples, images_of_prompts(samples, prompts), tmp_path / "out")
    assert written == len(samples.samples)
    assert (tmp_path / "out/color/samples/a red chair and a blue door_000001.png").is_file()
    assert is_official_layout(tmp_path / "out")
    assert not is_official_layout(tmp_path / "samples")

    back = images_of_prompts(read_official_layout("out", tmp_path / "out"), prompts)
    first = images_of_prompts(samples, prompts)
    assert list(back) == list(first)
    for category, entries in first.items():
        for ours, theirs in zip(entries, back[category], strict=True):
            assert ours.prompt == theirs.prompt
            for a, b in zip(ours.samples, theirs.samples, strict=True):
                assert (samples.folder / a.file).read_bytes() == (tmp_path / "out" / b.file).read_bytes()


def test_no_prompt_makes_a_name_that_collides_or_leaves_its_folder(tmp_path: Path) -> None:
    texts = ["a/../b", "a-..-b", "../x", "long " * 100, "long " * 100 + "er", "under_score", "ä" * 300]
    samples = write_samples(tmp_path / "samples", {"color": texts}, images_per_prompt=1)
    prompts = {"color": [Prompt("color", index, text) for index, text in enumerate(texts)]}
    export_official_layout(samples, images_of_prompts(samples, prompts), tmp_path / "out")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.parent for path in files} == {tmp_path / "out/color/samples"}
    back = read_official_layout("out", tmp_path / "out")
    assert len(back.samples) == len(files) == len(texts)


def test_the_index_orders_imported_images_as_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "color/samples"
    folder.mkdir(parents=True)
    for index in (10, 9, 100):
        noise(index).save(folder / f"a red dog_{index}.png")
    (folder / ".hidden_000001.png").write_bytes(b"")
    names = [sample.file for sample in read_official_layout("x", tmp_path).samples]
    assert names == [f"color/samples/a red dog_{index}.png" for index in (9, 10, 100)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("nonsense.png", b"", "expected {prompt}_"), ("a dog_000000.png", b"\x89PNG", "no image")],
)
def test_what_is_no_image_of_a_prompt_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / "color/samples").mkdir(parents=True)
    (tmp_path / "color/samples" / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*{message}"):
        read_official_layout("x", tmp_path)


def test_an_export_never_goes_where_something_is(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples")
    prompts = read_prompts(str(write_prompts(tmp_path / "prompts")), ["color"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something"):
        export_official_layout(samples, images_of_prompts(samples, prompts), tmp_path / "out")
    assert (tmp_path / "out/mine.txt").read_text() == "mine"
