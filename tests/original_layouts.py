"""The original DiT and PixArt, by hand from their papers and released code: shapes and forward pass.

Functions of a flat dict of weights in the original names; nothing of ours is used, so that name
tables and conversions have something independent to be compared with.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

WIDTH, HEADS, DEPTH, PATCH, CHANNELS, SIDE, CAPTION, TOKENS, CLASSES = 24, 4, 3, 2, 4, 8, 20, 6, 5


def position_table(width: int, grid: int, base: int, scale: float = 1.0) -> Tensor:
    steps = np.arange(grid, dtype=np.float32) / (grid / base) / scale
    columns, rows = np.meshgrid(steps, steps)

    def waves(positions):
        omega = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
        angles = np.einsum("m,d->md", positions.reshape(-1), omega)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    return torch.from_numpy(np.concatenate([waves(columns), waves(rows)], axis=1)).float()[None]


def make_weights(
    kind: str,
    *,
    micro: bool = False,
    scale: float = 1.0,
    seed: int = 0,
    width: int = WIDTH,
    depth: int = DEPTH,
    patch: int = PATCH,
    channels: int = CHANNELS,
    side: int = SIDE,
    caption: int = CAPTION,
    tokens: int = TOKENS,
    classes: int = CLASSES,
    outputs: int = 2,
) -> dict[str, Tensor]:
    """Random non-zero weights of a tiny model, "dit" or "pixart"; `outputs` channels for each input's."""
    d = width
    shapes: dict[str, tuple[int, ...]] = {"x_embedder.proj.weight": (d, channels, patch, patch)}
    shapes["x_embedder.proj.bias"] = (d,)

    def linear(name: str, out: int, inner: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inner), (out,)

    linear("t_embedder.mlp.0", d, 256)
    linear("t_embedder.mlp.2", d, d)
    if kind == "dit":
        shapes["y_embedder.embedding_table.weight"] = (classes + 1, d)
        linear("final_layer.adaLN_modulation.1", 2 * d, d)
    else:
        linear("t_block.1", 6 * d, d)
        linear("y_embedder.y_proj.fc1", d, caption)
        linear("y_embedder.y_proj.fc2", d, d)
        shapes["y_embedder.y_embedding"] = (tokens, caption)
        shapes["final_layer.scale_shift_table"] = (2, d)
        for name in ("csize_embedder", "ar_embedder") if micro else ():
            linear(f"{name}.mlp.0", d // 3, 256)
            linear(f"{name}.mlp.2", d // 3, d // 3)
    linear("final_layer.linear", patch * patch * outputs * channels, d)
    for i in range(depth):
        linear(f"blocks.{i}.attn.qkv", 3 * d, d)
        linear(f"blocks.{i}.attn.proj", d, d)
        linear(f"blocks.{i}.mlp.fc1", 4 * d, d)
        linear(f"blocks.{i}.mlp.fc2", d, 4 * d)
        if kind == "dit":
            linear(f"blocks.{i}.adaLN_modulation.1", 6 * d, d)
        else:
            shapes[f"blocks.{i}.scale_shift_table"] = (6, d)
            linear(f"blocks.{i}.cross_attn.q_linear", d, d)
            linear(f"blocks.{i}.cross_attn.kv_linear", 2 * d, d)
            linear(f"blocks.{i}.cross_attn.proj", d, d)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for name, shape in shapes.items()
    }
    weights["pos_embed"] = position_table(d, side // patch, side // patch, scale)
    return weights


def _sinusoid(values: Tensor) -> Tensor:
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
    angles = values[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _embed(w: dict[str, Tensor], name: str, values: Tensor) -> Tensor:
    return _linear(w, f"{name}.2", F.silu(_linear(w, f"{name}.0", _sinusoid(values))))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, n, d = q.shape
    q, k, v = (x.reshape(b, -1, HEADS, d // HEADS).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / math.sqrt(d // HEADS)).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(b, n, d)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def forward(
    w: dict[str, Tensor],
    x: Tensor,
    t: Tensor,
    *,
    labels: Tensor | None = None,
    text: Tensor | None = None,
    size: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """DiT when `labels` are given, PixArt when `text` (b, l, CAPTION) is; square latents of side SIDE."""
    b = len(x)
    x = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2) + w["pos_embed"]
    c = _embed(w, "t_embedder.mlp", t)
    if labels is not None:
        c = c + w["y_embedder.embedding_table.weight"][labels]
        shared = None
    else:
        if size is not None:
            sizes, ratios = size
            c_size = _embed(w, "csize_embedder.mlp", sizes.reshape(-1)).reshape(b, -1)
            c = c + torch.cat([c_size, _embed(w, "ar_embedder.mlp", ratios.reshape(-1))], dim=1)
        shared = _linear(w, "t_block.1", F.silu(c)).reshape(b, 6, -1)
        text = F.gelu(_linear(w, "y_embedder.y_proj.fc1", text), approximate="tanh")
        text = _linear(w, "y_embedder.y_proj.fc2", text)
    for i in range(DEPTH):
        block = f"blocks.{i}"
        if shared is None:
            s = _linear(w, f"{block}.adaLN_modulation.1", F.silu(c)).reshape(b, 6, -1)
        else:
            s = w[f"{block}.scale_shift_table"][None] + shared
        shift1, scale1, gate1, shift2, scale2, gate2 = s.chunk(6, dim=1)
        h = _linear(w, f"{block}.attn.qkv", _norm(x) * (1 + scale1) + shift1)
        x = x + gate1 * _linear(w, f"{block}.attn.proj", _attend(*h.chunk(3, dim=-1)))
        if shared is not None:
            q = _linear(w, f"{block}.cross_attn.q_linear", x)
            k, v = _linear(w, f"{block}.cross_attn.kv_linear", text).chunk(2, dim=-1)
            x = x + _linear(w, f"{block}.cross_attn.proj", _attend(q, k, v))
        h = F.gelu(_linear(w, f"{block}.mlp.fc1", _norm(x) * (1 + scale2) + shift2), approximate="tanh")
        x = x + gate2 * _linear(w, f"{block}.mlp.fc2", h)
    if shared is None:
        last = _linear(w, "final_layer.adaLN_modulation.1", F.silu(c)).reshape(b, 2, -1)
    else:
        last = w["final_layer.scale_shift_table"][None] + c[:, None]
    shift, scale = last.chunk(2, dim=1)
    x = _linear(w, "final_layer.linear", _norm(x) * (1 + scale) + shift)
    grid = SIDE // PATCH
    x = x.reshape(b, grid, grid, PATCH, PATCH, 2 * CHANNELS)
    return torch.einsum("nhwpqc->nchpwq", x).reshape(b, 2 * CHANNELS, SIDE, SIDE)
