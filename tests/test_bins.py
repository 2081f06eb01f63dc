"""Laws of resolution bins: diffusers chooses the same, the user is told, and what lies outside is refused."""

import dataclasses
import math
from pathlib import Path

import pytest
from command_line import pixart
from diffusers.image_processor import PixArtImageProcessor
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import (
    ASPECT_RATIO_256_BIN,
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
)
from drawn_images import pixels
from pydantic import ValidationError
from test_prompt_files import write_rows
from tiny_pipelines import write_tiny_pipeline

from pixart_core.artifacts.samples import read_samples
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.schema import SampleStep
from pixart_core.sampling.bins import SizeChoice, resolution_bins
from pixart_core.sampling.outline import ModelOutline, read_outline
from pixart_core.sampling.sample import run_sampling

RATIOS = ("1:1", "9:16", "16:9", "3:4", "4:3", "2:3", "3:2", "1:2", "2:1", "21:9", "1:4", "4:1", "2.39:1")
TABLES = {256: ASPECT_RATIO_256_BIN, 512: ASPECT_RATIO_512_BIN, 1024: ASPECT_RATIO_1024_BIN}


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """Of 64 pixels, made of patches of 4: a sixteenth of the paper's."""
    return write_tiny_pipeline(tmp_path_factory.mktemp("model"), sample_size=32)


@pytest.fixture(scope="module")
def model(pipeline) -> ModelOutline:
    return read_outline(str(pipeline))


def at(model: ModelOutline, pixels: int, *trained: tuple[int, int]) -> ModelOutline:
    """The same model, for a square of `pixels`."""
    config = dataclasses.replace(model.config, sample_size=pixels // 2)
    facts = dataclasses.replace(model.facts, trained_sizes=trained)
    return dataclasses.replace(model, config=config, facts=facts)


def sample(pipeline: Path, output: Path, **changes) -> list[str]:
    """What was said of the pictures."""
    said = Said()
    options = {"checkpoint": str(pipeline), "prompts": ("red",), "num_inference_steps": 1}
    run_sampling(SampleStep(**(options | changes)), output, said)
    return [line for line in said.lines if not line.startswith("memory")]


def sizes(folder: Path) -> list[tuple[int, int]]:
    """Of the pictures themselves, which must be what is recorded."""
    shapes = [picture.shape[:2] for picture in pixels(folder)]
    assert shapes == [(record.height, record.width) for record in read_samples(folder)]
    return shapes


@pytest.mark.parametrize("pixels", [256, 512, 1024])
def test_bins_are_those_of_diffusers_where_it_has_them(model, pixels) -> None:
    large = at(model, pixels)
    bins = resolution_bins(large)
    table = {tuple(map(int, size)) for size in TABLES[pixels].values()}
    assert len(bins) == 40
    assert table < set(bins)
    choice = SizeChoice(large, any_size=False)
    for ratio in RATIOS:
        width, height = (float(part) for part in ratio.split(":"))
        expected = PixArtImageProcessor.classify_height_width_bin(
            round(1200 * height), round(1200 * width), ratios=TABLES[pixels]
        )
        chosen = choice.of_aspect(ratio)
        # 4:3 is as far from one bin as from the next by difference, which diffusers takes; not by ratio.
        if chosen in table and ratio != "4:3":
            assert chosen == expected, ratio
        else:  # otherwise one of the seven that diffusers leaves out
            off = [abs(math.log(size[0] / size[1] * width / height)) for size in (chosen, expected)]
            assert off[0] < off[1], ratio
    for size in table:
        assert choice.of_size(*size) == size


def test_the_ratio_is_of_width_to_height_and_the_bin_is_told_once(pipeline, tmp_path) -> None:
    said = sample(pipeline, tmp_path / "set", ar="9:16", images_per_prompt=2)
    # 768 x 1344 at 1024 pixels.
    assert sizes(tmp_path / "set") == [(84, 48), (84, 48)]
    (line,) = [line for line in said if "ar 9:16" in line]
    assert "drawn at 84x48 (height x width), the nearest in shape of the 40 sizes" in line


def test_a_size_becomes_its_bin_and_any_size_keeps_it(pipeline, tmp_path) -> None:
    said = sample(pipeline, tmp_path / "bin", height=56, width=80)
    assert sizes(tmp_path / "bin") == [(52, 76)]  # 832 x 1216
    assert any("56x80: drawn at 52x76" in line and "any_size=true" in line for line in said)
    assert sample(pipeline, tmp_path / "exact", height=56, width=80, any_size=True) == []
    assert sizes(tmp_path / "exact") == [(56, 80)]
    assert sample(pipeline, tmp_path / "square", height=64, width=64) == []
    assert sizes(tmp_path / "square") == [(64, 64)]
    # `sizes` is always meant literally.
    assert sample(pipeline, tmp_path / "sizes", sizes=((56, 80),)) == []
    assert sizes(tmp_path / "sizes") == [(56, 80)]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"height": 128, "width": 128}, r"128x128 has 4 times the pixels.*any_size=true"),
        ({"ar": "1:4"}, r"128x32 is 4 times as tall.*any_size=true"),  # this model was trained on squares
        ({"ar": "1:9"}, r"ar 1:9: .* none of about that shape"),
        ({"height": 30, "width": 30, "any_size": True}, "multiples of 4"),
    ],
)
def test_sizes_outside_are_refused(pipeline, tmp_path, asked, message) -> None:
    with pytest.raises(UserError, match=message):
        sample(pipeline, tmp_path / "set", **asked)
    assert not (tmp_path / "set").exists()


def test_far_bins_are_drawn_with_any_size(pipeline, tmp_path) -> None:
    sample(pipeline, tmp_path / "set", ar="1:4", any_size=True)
    assert sizes(tmp_path / "set") == [(128, 32)]
    assert read_samples(tmp_path / "set")[0].untrained_size


def test_the_bins_of_a_model_trained_in_buckets_are_those(model) -> None:
    choice = SizeChoice(at(model, 64, (64, 96), (96, 64)), any_size=False)
    assert choice.of_aspect("3:2") == (64, 96)
    assert choice.of_aspect("10:16") == (96, 64)
    assert choice.of_size(68, 96) == (64, 96)
    assert choice.of_size(80, 80) == (80, 80)  # neither is of about that shape
    with pytest.raises(UserError, match="only 64x96, 96x64, none of about that shape"):
        choice.of_aspect("1:1")


@pytest.mark.parametrize("ratio", ["1:1", "9:16", "16:9", "4:3", "2:1"])
def test_without_a_table_a_shape_has_about_the_pixels_of_the_default(model, ratio) -> None:
    small = at(model, 96)  # 6 pixels would be a step of the table, patches are 4
    assert resolution_bins(small) == ()
    choice = SizeChoice(small, any_size=False)
    height, width = choice.of_aspect(ratio)
    assert height % 4 == width % 4 == 0
    assert abs(height * width / 96**2 - 1) < 0.06
    across, down = map(int, ratio.split(":"))
    assert abs(math.log(width / height * down / across)) < 0.06
    assert "in whole patches of the default size" in choice.notes[0]
    assert choice.of_size(100, 92) == (100, 92)
    with pytest.raises(UserError, match="no size, none of about that shape"):
        choice.of_aspect("1:3000")


def test_each_prompt_may_have_its_own_shape(pipeline, tmp_path) -> None:
    rows = [
        {"prompt": "a", "ar": "9:16"},
        {"prompt": "b"},
        {"prompt": "c", "height": 56, "width": 80},
    ]
    for name in ("p.csv", "p.jsonl"):
        prompts = str(write_rows(tmp_path / name, rows))
        said = sample(pipeline, tmp_path / f"{name}-set", prompts=(), prompts_file=prompts, ar="4:3")
        assert sizes(tmp_path / f"{name}-set") == [(84, 48), (56, 72), (52, 76)]
        assert len(said) == 3


def test_many_shapes_are_told_in_few_lines(model) -> None:
    choice = SizeChoice(model, any_size=False)
    for width in range(30, 50):
        choice.of_aspect(f"{width}:40")
    assert len(choice.notes) == 9
    assert choice.notes[-1] == "and 12 more sizes by their nearest bin"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ar": "9x16"}, "width:height as in 9:16"),
        ({"ar": "0:16"}, "two positive numbers"),
        ({"height": 64}, "height and width together"),
        ({"ar": "1:1", "height": 64, "width": 64}, "either ar or height and width"),
        ({"ar": "1:1", "sizes": ((64, 64),)}, "either sizes or ar"),
    ],
)
def test_contradictions_are_named(options, message) -> None:
    with pytest.raises(ValidationError, match=message):
        SampleStep(checkpoint="x", **options)


def test_the_command_takes_a_shape_also_for_an_image_made_before(pipeline, tmp_path, capsys) -> None:
    def run(name: str, *arguments: str) -> list[tuple[int, int]]:
        code = pixart("sample", *arguments, "--output", tmp_path / name, "--device", "cpu")
        assert code == 0, capsys.readouterr().err
        return sizes(tmp_path / name)

    first = ("--checkpoint", str(pipeline), "red", "--num-inference-steps", "1")
    assert run("one", *first, "--ar", "9:16") == [(84, 48)]
    image = str(tmp_path / "one/images/000000.png")
    assert run("two", "--from", image, "--ar", "16:9") == [(48, 84)]
    assert run("three", "--from", image, "--height", "64", "--width", "64") == [(64, 64)]
    assert run("four", "--from", image) == [(84, 48)]
    assert "16:9: drawn at 48x84" in capsys.readouterr().err
