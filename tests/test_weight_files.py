"""Laws of the weights on disk: what safetensors writes, in one file or in shards that diffusers loads."""

import json
import resource
from pathlib import Path

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from safetensors.torch import save_file

from pixart_core.artifacts.publish import staged_folder
from pixart_core.artifacts.tensor_file import write_tensors
from pixart_core.errors import PixartError, UserError
from pixart_core.models.build import build_transformer
from pixart_core.models.config import TransformerConfig
from pixart_core.models.files import WEIGHTS, WEIGHTS_INDEX, load_transformer, load_weights, save_transformer

CONFIG = TransformerConfig(
    num_attention_heads=2, attention_head_dim=12, num_layers=2, sample_size=8, caption_channels=8
)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(t.shape) for name, t in build_transformer(CONFIG).state_dict().items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float64])
def test_a_file_equals_that_of_safetensors_byte_for_byte(
    tmp_path: Path, dtype: torch.dtype, stored: torch.dtype
) -> None:
    tensors = {
        "b.weight": torch.randn(3, 5),
        "a": torch.randn(7),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "a view": torch.randn(6, 4).chunk(3)[1].t(),
        'an "odd" näme': torch.randn(2),
    }
    tensors = {name: tensor.to(stored) for name, tensor in tensors.items()}
    final = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(final, tmp_path / "theirs", metadata={"format": "pt"})
    write_tensors(tmp_path / "ours", tensors, dtype)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_value_beyond_fp16_is_named_not_made_infinite(tmp_path: Path) -> None:
    tensors = {"fine": torch.ones(2), "large": torch.tensor([1.0, -70_000.0])}
    with pytest.raises(UserError, match=r"large has a value of 7e\+04, beyond the range of float16"):
        write_tensors(tmp_path / "a", tensors, torch.float16)
    assert list(tmp_path.iterdir()) == []
    # What was infinite before may stay so: that is no loss.
    write_tensors(tmp_path / "a", {"x": torch.tensor([float("inf"), 1.0])}, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_diffusers_loads_our_shards(
    tmp_path: Path, weights: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    save_transformer(CONFIG, weights, tmp_path, dtype, max_shard_size=20_000)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"diffusion_pytorch_model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / WEIGHTS_INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() for t in weights.values()) * dtype.itemsize
    theirs = PixArtTransformer2DModel.from_pretrained(tmp_path, torch_dtype=dtype)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, weights[name].to(dtype)), name
    ours = load_transformer(tmp_path)
    assert all(torch.equal(t, weights[name].to(dtype).float()) for name, t in ours.state_dict().items())


def test_views_of_one_tensor_do_not_end_up_in_one_shard(tmp_path: Path) -> None:
    whole = torch.randn(6, 1000)  # as to_q, to_k and to_v are, cut from a file's qkv
    save_transformer(CONFIG, dict(enumerate_rows(whole)), tmp_path, max_shard_size=8_000)
    assert len(list(tmp_path.glob("*-of-00003.safetensors"))) == 3
    loaded = load_weights(tmp_path)
    assert all(torch.equal(loaded[name], row) for name, row in enumerate_rows(whole))


def enumerate_rows(whole: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    return [(f"row{index}", row) for index, row in enumerate(whole)]


def test_what_an_earlier_save_left_is_gone(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    def files() -> set[str]:
        return {path.name for path in tmp_path.iterdir()}

    save_transformer(CONFIG, weights, tmp_path, max_shard_size=20_000)
    many = files()
    save_transformer(CONFIG, weights, tmp_path)
    assert files() == {WEIGHTS, "config.json"}
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").touch()  # somebody's variant stays
    save_transformer(CONFIG, weights, tmp_path, max_shard_size=40_000)
    assert WEIGHTS not in files()
    assert "diffusion_pytorch_model.fp16.safetensors" in files()
    assert len(files()) < len(many)
    loaded = load_weights(tmp_path)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_a_missing_or_cut_shard_is_named(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    save_transformer(CONFIG, weights, tmp_path, max_shard_size=40_000)
    second = sorted(tmp_path.glob("*-of-*"))[1]
    content = second.read_bytes()
    second.write_bytes(content[:-10])
    with pytest.raises(UserError, match=f"{second.name} is damaged"):
        load_transformer(tmp_path)
    second.unlink()
    with pytest.raises(UserError, match=f"holds no {second.name}"):
        load_transformer(tmp_path)


def save_staged(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    with staged_folder(folder) as staging:
        (staging / "first").write_text("written before the disk was full")
        save_transformer(CONFIG, weights, staging)


def test_a_full_disk_leaves_nothing_of_a_folder(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(PixartError, match=r"cannot write .*File too large"):
            save_staged(tmp_path / "x", weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert list(tmp_path.iterdir()) == []
