"""Laws of prompt files: what a row says holds for its image alone, and mistakes are told with their lines."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_pipelines import write_tiny_pipeline

from pixart_core.artifacts.samples import SampleRecord, read_samples
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.estimate import estimate
from pixart_core.recipe.load import step_from_options
from pixart_core.recipe.prompts import read_prompt_file
from pixart_core.recipe.schema import SampleStep
from pixart_core.sampling.requests import read_requests
from pixart_core.sampling.sample import run_sampling

ROWS = [
    {"prompt": 'a "red", circle', "seed": 11, "id": "one"},
    {"prompt": "two blue\nsquares", "height": 24, "width": 16, "guidance_scale": 1.0},
    {"prompt": "red", "negative_prompt": "blue", "num_inference_steps": 2, "images_per_prompt": 2, "seed": 0},
    {"prompt": "red"},
]


class AsAsked:
    """Sizes without bins."""

    def of_aspect(self, ar: str) -> tuple[int, int]:
        raise NotImplementedError(ar)

    def of_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width


def write_rows(path: Path, rows=ROWS) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return path
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # as Excel saves it
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def requests(path: Path, **options) -> list[SampleRecord]:
    step = SampleStep(checkpoint="x", prompts_file=str(path), **options)
    return read_requests(step, (16, 16), AsAsked())


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("model"))


def picture(folder: Path, number: int) -> np.ndarray:
    return np.asarray(Image.open(folder / read_samples(folder)[number].file)).astype(int)


def test_csv_and_jsonl_of_the_same_rows_ask_for_the_same(tmp_path) -> None:
    a, b = (requests(write_rows(tmp_path / name)) for name in ("p.jsonl", "p.csv"))
    assert a == b
    assert [record.prompt for record in a] == [
        'a "red", circle',
        "two blue\nsquares",
        "red",
        "red",
        "red",
    ]
    assert [record.id for record in a] == ["one", "000001", "000002", "000002", "000003"]
    assert [(record.height, record.width) for record in a][:2] == [(16, 16), (24, 16)]
    assert [record.guidance_scale for record in a] == [4.5, 1.0, 4.5, 4.5, 4.5]
    assert [record.num_inference_steps for record in a] == [20, 20, 2, 2, 20]
    assert [record.negative_prompt for record in a] == ["", "", "blue", "blue", ""]
    assert len({record.file for record in a}) == 5


def test_a_given_seed_is_that_of_the_image_and_further_images_have_others(tmp_path) -> None:
    records = requests(write_rows(tmp_path / "p.jsonl"))
    plain = tmp_path / "p.txt"
    plain.write_text("a\nb\nc\nd\ne\n")
    derived = requests(plain)
    assert records[0].seed == 11
    assert records[2].seed == 0
    assert len({record.seed for record in records}) == 5
    # Where none is given it is the one that it would be in any other file.
    assert [records[n].seed for n in (1, 4)] == [derived[n].seed for n in (1, 4)]


def test_each_image_is_drawn_as_if_its_options_were_those_of_all(pipeline, tmp_path) -> None:
    mixed = tmp_path / "mixed"
    options = {"checkpoint": str(pipeline), "num_inference_steps": 3}
    step = SampleStep(**options, prompts_file=str(write_rows(tmp_path / "p.jsonl")))
    run_sampling(step, mixed, Silent())
    whole = {1: {"sizes": ((24, 16),), "guidance_scale": 1.0}, 2: {"negative_prompt": "blue"}}
    whole[2]["num_inference_steps"] = 2
    for number, changes in whole.items():
        seed = read_samples(mixed)[number].seed
        bare = write_rows(tmp_path / f"{number}.jsonl", [{"prompt": ROWS[number]["prompt"], "seed": seed}])
        run_sampling(
            SampleStep(**(options | {"prompts_file": str(bare)} | changes)), tmp_path / f"{number}", Silent()
        )
        assert np.abs(picture(mixed, number) - picture(tmp_path / f"{number}", 0)).max() <= 1
    assert np.abs(picture(mixed, 2) - picture(mixed, 4)).max() > 8
    told = json.loads(Image.open(mixed / "images/000002.png").text["pixart"])
    assert (told["negative_prompt"], told["num_inference_steps"], told["seed"]) == ("blue", 2, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b", "sede": 3}\n', r"p.jsonl:2: sede: .*did you mean seed"),
        ("p.jsonl", '{"prompt": "a"\n', "p.jsonl:1: not JSON"),
        ("p.jsonl", '\n["a"]\n', "p.jsonl:2: expected an object"),
        ("p.jsonl", '{"seed": 3}\n', "p.jsonl:1: prompt: .*(missing|required)"),
        ("p.jsonl", '{"prompt": "a", "seed": -3}\n', "p.jsonl:1: seed: "),
        ("p.jsonl", '{"prompt": "a", "height": 32}\n', "height and width together"),
        ("p.jsonl", '{"prompt": "a", "ar": "1:2", "height": 32, "width": 16}\n', "either ar or height"),
        ("p.csv", "prompt,ar\na,16x9\n", "p.csv:2: ar: .*width:height as in 9:16"),
        ("p.jsonl", '{"prompt": " "}\n', "p.jsonl:1: the prompt is empty"),
        ("p.jsonl", '{"prompt": "a", "id": 1}\n{"prompt": "b", "id": "1"}\n', "p.jsonl:2: id '1' is that of"),
        ("p.jsonl", '{"prompt": "a", "num_inference_steps": 1001}\n', "prompt 000000: .*at most 1000"),
        ("p.jsonl", '{"prompt": "a", "id": "000001"}\n{"prompt": "b"}\n', "two prompts have the id '000001'"),
        ("p.jsonl", '{"prompt": "a", "seed": -1}\n{"prompt": "b", "width": 0}\n', "2 mistakes:"),
        ("p.jsonl", '{"prompt": "\\ud83d cut"}\n', "p.jsonl:1: prompt: is no text that can be written"),
        ("p.jsonl", '{"prompt": "a", "negative_prompt": "\\udca9"}\n', "1: negative_prompt: is no text"),
        ("p.jsonl", "\n", "holds no prompts"),
        ("p.csv", "prompt,sede\na,3\n", "p.csv:1: unknown column 'sede', did you mean seed"),
        ("p.csv", "seed\n3\n", "p.csv:1: no column named prompt"),
        ("p.csv", "prompt,seed\na, b,3\n", "p.csv:2: more cells than columns"),
        ("p.csv", "prompt,seed\na,x\n", "p.csv:2: seed: "),
        ("p.csv", 'prompt,seed\n"a,3\n', "p.csv: not CSV after line 1"),
        ("p.csv", "prompt,seed\n,3\n", "p.csv:2: prompt: "),
        ("p.csv", "", "no column named prompt"),
        (
            "p.jsonl",
            '{"prompt": "a"\n{"prompt": 1}\n["b"]\n',
            "(?s)3 mistakes:.*1: not JSON.*2: prompt: .*3: e",
        ),
        ("p.csv", "prompt,ar\na, b,1:2\nc,2\n", "(?s)2 mistakes:.*csv:2: more cells.*csv:3: ar: "),
        ("p.csv", "prompt,guidance_scale\na,nan\n", "p.csv:2: guidance_scale: expected a finite number, got"),
    ],
)
def test_mistakes_in_a_file_are_told_with_their_lines(tmp_path, name, content, message) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        requests(tmp_path / name)


def test_a_file_of_another_encoding_and_a_folder_are_told_as_such(tmp_path) -> None:
    (tmp_path / "p.csv").write_bytes("prompt\na\nsœur\n".encode("utf-16"))
    (tmp_path / "p.txt").write_bytes("a\nété\n".encode("latin-1"))
    (tmp_path / "excel.csv").write_bytes("\ufeffprompt,ar\r\nété,1:2\r\n".encode())
    with pytest.raises(UserError, match=r"p.csv:\d: not UTF-8"):
        read_prompt_file(tmp_path / "p.csv")
    with pytest.raises(UserError, match=r"p.txt:2: not UTF-8"):
        read_prompt_file(tmp_path / "p.txt")
    with pytest.raises(UserError, match="is a folder without a manifest"):
        read_prompt_file(tmp_path)
    (row,) = read_prompt_file(tmp_path / "excel.csv")
    assert (row.prompt, row.ar) == ("été", "1:2")


def test_an_argument_that_is_no_text_is_one_mistake() -> None:
    """As a shell of another encoding passes it; defaults that follow from the sampler are not to blame."""
    with pytest.raises(UserError) as error:
        step_from_options(SampleStep, {"checkpoint": "x", "prompts": ["\udcff fox"]}, [], {})
    assert str(error.value).count("is no text that can be written") == 1
    assert "\n" not in str(error.value)


def test_a_dry_run_counts_what_would_be_drawn(tmp_path) -> None:
    for name in ("p.jsonl", "p.csv"):
        path = write_rows(tmp_path / name)
        step = SampleStep(checkpoint="x", prompts=("a",), prompts_file=str(path), images_per_prompt=3)
        records = read_requests(step, (16, 16), AsAsked())
        assert estimate(step) == {
            "prompts": 5,
            "images": len(records),
            "solver_steps": sum(record.num_inference_steps for record in records),
        }


def test_ids_and_ground_truth_of_a_jsonl_file_reach_the_samples(tmp_path) -> None:
    rows = [{"prompt": "a red bench", "id": "color-000", "meta": {"category": "color"}}]
    record = requests(write_rows(tmp_path / "p.jsonl", rows))[0]
    assert (record.id, record.meta) == ("color-000", {"category": "color"})


def test_lines_of_text_stay_prompts_whatever_they_look_like(tmp_path) -> None:
    (tmp_path / "p.txt").write_text('{"prompt": "a"}\nprompt,seed\n')
    assert [row.prompt for row in read_prompt_file(tmp_path / "p.txt")] == ['{"prompt": "a"}', "prompt,seed"]
