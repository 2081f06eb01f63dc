"""Laws of odd sources: what is in no released file is refused in one line that names it, or noted."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import original_layouts as original
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from pixart_cli.app import app
from pixart_core.artifacts.tensor_file import cast
from pixart_core.conversion.convert import run_conversion
from pixart_core.conversion.detect import load_any
from pixart_core.conversion.encoder_folders import read_config
from pixart_core.conversion.infer import Hints
from pixart_core.conversion.info import describe
from pixart_core.conversion.prepare import prepare
from pixart_core.conversion.transformer_folder import find_weights
from pixart_core.errors import UserError
from pixart_core.models.files import load_transformer
from pixart_core.progress import Silent
from pixart_core.recipe.schema import ConvertStep

HEADS = {"num_attention_heads": original.HEADS}
PREFIX = "diffusion_pytorch_model"
Y_EMBEDDING = "y_embedder.y_embedding"


def save(folder: Path, kind: str = "pixart", **changes: Any) -> Path:
    """A tiny original file with some entries changed; None takes one away."""
    weights = original.make_weights(kind) | {name.replace("__", "."): t for name, t in changes.items()}
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}
    path = folder / ("PixArt.pth" if kind == "pixart" else "dit.pt")
    torch.save({"state_dict": weights} if kind == "pixart" else weights, path)
    return path


def convert(source: Path, to: str, output: Path, **options: Any) -> dict[str, Any]:
    return run_conversion(ConvertStep(source=str(source), to=to, **options), output, Silent())


@contextlib.contextmanager
def refused(message: str) -> Iterator[None]:
    with pytest.raises(UserError, match=message) as error:
        yield
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def refused_everywhere(source: Path, message: str, **hints: Any) -> None:
    """By reading, by the dry run, and as a problem of `--info`."""
    with refused(message):
        load_any(source, Hints(**HEADS | hints))
    with refused(message):
        prepare(ConvertStep(source=str(source), to="pixart", **HEADS | hints))
    problems = describe(source)["problems"]
    assert len(problems) == 1
    assert re.search(message, problems[0])


@pytest.mark.parametrize(
    "shape", [(1, original.TOKENS, original.CAPTION), (original.TOKENS, 7), (original.CAPTION,), (), (0, 20)]
)
def test_a_learned_caption_of_another_shape_is_refused_not_dropped(tmp_path: Path, shape: tuple) -> None:
    source = save(tmp_path, **{Y_EMBEDDING: torch.zeros(shape)})
    message = re.escape(f"has shape {shape}, expected (tokens, {original.CAPTION})")
    refused_everywhere(source, f"{Y_EMBEDDING}.*{message}")


def test_a_stored_learned_caption_of_another_width_is_refused(tmp_path: Path) -> None:
    convert(save(tmp_path), "pixart", tmp_path / "ours", **HEADS)
    save_file({"y_embedding": torch.zeros(6, 7)}, tmp_path / "ours" / "uncond.safetensors")
    with refused(r"\(6, 7\), expected \(tokens, 20\)"):
        load_any(tmp_path / "ours")


@pytest.mark.parametrize("number", ["999999999", "1000000000000", str(original.DEPTH + 1), "9" * 5000, "²"])
@pytest.mark.parametrize("kind", ["pixart", "dit"])
def test_a_stray_block_is_named_at_once(tmp_path: Path, kind: str, number: str) -> None:
    source, last = save(tmp_path, kind, **{f"blocks.{number}.x": torch.zeros(1)}), original.DEPTH
    refused_everywhere(source, rf"(there is no blocks\.{last}, but|left over:) blocks\.{number[:40]}")


def test_a_missing_block_is_named(tmp_path: Path) -> None:
    gone = {name: None for name in original.make_weights("dit") if name.startswith("blocks.1.")}
    refused_everywhere(save(tmp_path, "dit", **gone), r"there is no blocks\.1, but blocks\.2\.")


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    convert(save(tmp_path), "pixart", tmp_path / "ours", **HEADS)
    return tmp_path / "ours"


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("layers", [10**9, original.DEPTH - 1, original.DEPTH + 1])
def test_a_config_of_another_depth_is_refused_before_it_is_built(ours: Path, layers: int) -> None:
    change_config(ours, num_layers=layers)
    message = f"num_layers {layers}, but the weights have {original.DEPTH} blocks"
    for read in (load_any, load_transformer):
        with refused(message):
            read(ours)
    assert message in describe(ours)["problems"][0]


@pytest.mark.parametrize("name", ["num_attention_heads", "attention_head_dim", "caption_channels"])
def test_a_config_of_impossible_sizes_is_refused(ours: Path, name: str) -> None:
    for size in (10**9, 10**18, 10**30):
        change_config(ours, **{name: size})
        for read in (load_any, load_transformer):
            with refused("config"):
                read(ours)


def test_stray_blocks_of_diffusers_names_are_named(ours: Path) -> None:
    file = ours / "transformer" / f"{PREFIX}.safetensors"
    whole = load_file(file)
    for stray, message in (
        ("transformer_blocks.999999999.x", r"there is no transformer_blocks\.3, but transformer_blocks\.9"),
        ("transformer_blocks.attn.x", r"unknown: transformer_blocks\.attn\.x"),
    ):
        save_file(whole | {stray: torch.zeros(1)}, file)
        with refused(message):
            load_any(ours)
        save_file(whole | {stray: torch.zeros(1)}, ours / "bare.safetensors")
        with refused(message):
            load_any(ours / "bare.safetensors", Hints(sample_size=8, **HEADS))


def test_a_stray_copy_of_a_controlnet_does_not_count_to_its_number(tmp_path: Path) -> None:
    base = {f"base_model.{name}": tensor for name, tensor in original.make_weights("pixart").items()}
    torch.save(base | {"controlnet.999999999.x": torch.zeros(1)}, tmp_path / "c.pth")
    assert describe(tmp_path / "c.pth")["copied_blocks"] == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["blocks.1.attn.qkv.weight", "pos_embed", Y_EMBEDDING])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t.to_sparse(), "sparse_coo"),
        (lambda t: t.to("meta"), "meta"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantised"),
        (lambda t: t.to(torch.complex64), "complex64"),
        (lambda t: t.to(torch.int8), "int8"),
    ],
    ids=["sparse", "meta", "quantised", "complex", "integer"],
)
def test_tensors_that_are_no_plain_floats_are_named(
    tmp_path: Path, name: str, change: Callable[[Tensor], Tensor], what: str
) -> None:
    changed = change(original.make_weights("pixart")[name])
    refused_everywhere(save(tmp_path, **{name: changed}), rf"{re.escape(name)} is .*{what}.*no weights")
    with refused(rf"^a weight is .*{what}"):
        cast("a weight", changed, torch.float32)


@pytest.mark.parametrize("shape", [(24, 4, 0, 0), (24, 4, 2), (24, 4, 2, 3), (24,)])
def test_a_projection_of_no_patches_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    message = re.escape(f"x_embedder.proj.weight, pos_embed.proj.weight) has shape {shape}")
    for kind in ("pixart", "dit"):
        refused_everywhere(save(tmp_path, kind, x_embedder__proj__weight=torch.zeros(shape)), message)


@pytest.mark.parametrize(
    "name", ["y_embedder.y_proj.fc1.weight", "final_layer.linear.weight", "t_block.1.weight"]
)
@pytest.mark.parametrize("shape", [(), (24,), (0, 3)])
def test_a_matrix_of_another_shape_is_one_line(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    refused_everywhere(save(tmp_path, **{f"{name}.weight": torch.zeros(shape)}), "PixArt.pth: ")


@pytest.mark.parametrize("text", ["[1]", '"a"', "{", "[" * 100_000])
def test_an_encoder_s_config_that_is_no_object_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(text)
    with refused(r"vae/config\.json is damaged"):
        read_config(str(tmp_path), "vae")
    with refused(r"vae/config\.json is damaged"):
        convert(save(tmp_path), "diffusers", tmp_path / "x", vae=str(tmp_path), **HEADS)


# From the best to the worst; each a file, or an index and its shard.
VARIANTS = (
    {f"{PREFIX}.safetensors.index.json": "a.safetensors"},
    {f"{PREFIX}.safetensors": None},
    {f"{PREFIX}.safetensors.index.fp16.json": "b.safetensors"},
    {f"{PREFIX}.fp16.safetensors": None},
    {f"{PREFIX}.bin.index.json": "a.bin"},
    {f"{PREFIX}.bin": None},
    {f"{PREFIX}.bin.index.fp16.json": "b.bin"},
    {f"{PREFIX}.fp16.bin": None},
)


def test_safetensors_count_before_pickles_and_full_precision_before_half(tmp_path: Path) -> None:
    for variant in reversed(VARIANTS):
        ((name, shard),) = variant.items()
        (tmp_path / name).write_text(json.dumps({"weight_map": {"x": shard}}))
        assert [file.name for file in find_weights(tmp_path)] == [shard or name]


def test_a_controlnet_without_its_base_is_a_problem_everywhere(tmp_path: Path) -> None:
    torch.save({"controlnet.0.after_proj.weight": torch.zeros(2, 2)}, tmp_path / "c.pth")
    info = describe(tmp_path / "c.pth")
    assert info["problems"] == [
        "1 copied blocks without the base model that they belong to: there is nothing to convert"
    ]
    for weights in ("ema", "base"):
        with refused("1 copied blocks without the base model") as error:
            load_any(tmp_path / "c.pth", Hints(weights=weights))
        assert "weights=base" not in str(error)


@pytest.mark.parametrize(
    ("kind", "to"), [("pixart", "pixart"), ("pixart", "official"), ("dit", "dit"), ("dit", "pixart")]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinite_weights_are_noted(tmp_path: Path, kind: str, to: str, value: float) -> None:
    name = "blocks.1.mlp.fc1.weight"
    bad = original.make_weights(kind)[name].index_fill(0, torch.tensor([3]), value)
    made = convert(save(tmp_path, kind), to, tmp_path / "good", **HEADS)
    assert not any("NaN" in note for note in made["notes"])
    made = convert(save(tmp_path, kind, **{name: bad}), to, tmp_path / "bad", **HEADS)
    (note,) = (note for note in made["notes"] if "NaN" in note)
    assert "in 1 of the weights" in note
    assert "1.mlp.fc1.weight" in note or "1.ff.net.0.proj.weight" in note


def test_our_own_checkpoint_is_called_so(ours: Path) -> None:
    assert describe(ours)["format"] == "pixart"
    result = CliRunner().invoke(app, ["convert", "--info", str(ours)])
    assert "pixart checkpoint" in result.stdout
    assert "diffusers" not in result.stdout
    assert load_any(ours).report.format == "pixart checkpoint"
