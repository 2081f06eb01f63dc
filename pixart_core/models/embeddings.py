"""Embeddings of timestep, image size, class, caption and position.

Sinusoids are computed in float32 whatever the model's type: bf16 maps timestep 999 to 1000.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixart_core.models.config import TransformerConfig
from pixart_core.models.gelu import gelu_tanh


def sinusoid(values: Float[Tensor, " b"] | Int[Tensor, " b"], freq_shift: int = 0) -> Float[Tensor, "b 256"]:
    """256 channels, cosines first, frequencies 10000^(-k / (128 - freq_shift)), in float32."""
    half = 128
    exponent = -math.log(10_000.0) * torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values.float()[:, None] * torch.exp(exponent / (half - freq_shift))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class EmbeddingMLP(nn.Module):
    """Sinusoid, Linear, SiLU, Linear."""

    def __init__(self, width: int, freq_shift: int = 0) -> None:
        super().__init__()
        self.freq_shift = freq_shift
        self.linear_1 = nn.Linear(256, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, values: Tensor) -> Float[Tensor, "b width"]:
        waves = sinusoid(values, self.freq_shift).to(self.linear_1.weight.dtype)
        return self.linear_2(nn.functional.silu(self.linear_1(waves)))


class TimestepSizeEmbedding(nn.Module):
    """Timestep embedding; with micro-conditions, plus those of (height, width) and aspect ratio."""

    def __init__(self, width: int, use_additional_conditions: bool, freq_shift: int = 0) -> None:
        super().__init__()
        self.timestep_embedder = EmbeddingMLP(width, freq_shift)
        self.use_additional_conditions = use_additional_conditions
        if use_additional_conditions:
            self.resolution_embedder = EmbeddingMLP(width // 3)
            self.aspect_ratio_embedder = EmbeddingMLP(width // 3)

    def forward(
        self,
        timesteps: Tensor,
        resolution: Float[Tensor, "b 2"] | None,
        aspect_ratio: Float[Tensor, "b 1"] | None,
    ) -> Float[Tensor, "b width"]:
        embedding = self.timestep_embedder(timesteps)
        if not self.use_additional_conditions:
            return embedding
        if resolution is None or aspect_ratio is None:
            raise ValueError(
                "this model has micro-conditions: give resolution (b, 2) and aspect_ratio (b, 1)"
            )
        sizes = self.resolution_embedder(resolution.flatten()).view(len(embedding), -1)
        ratios = self.aspect_ratio_embedder(aspect_ratio.flatten()).view(len(embedding), -1)
        return embedding + torch.cat([sizes, ratios], dim=1)


class ClassEmbedding(nn.Module):
    """Rows of a table; the last row is the null class of classifier-free guidance."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        if torch.get_default_device().type == "meta":  # see `initialise`
            self.embedding_table = nn.Embedding.from_pretrained(
                torch.empty(num_classes + 1, width), freeze=False
            )
        else:
            self.embedding_table = nn.Embedding(num_classes + 1, width)

    @property
    def null_class(self) -> int:
        """Index of the null class."""
        return self.embedding_table.num_embeddings - 1

    def forward(self, labels: Int[Tensor, " b"]) -> Float[Tensor, "b width"]:
        return self.embedding_table(labels)


class TimestepClassEmbedding(nn.Module):
    """t + c of DiT: timestep embedding plus class embedding."""

    def __init__(self, num_classes: int, width: int, freq_shift: int) -> None:
        super().__init__()
        self.timestep_embedder = EmbeddingMLP(width, freq_shift)
        self.class_embedder = ClassEmbedding(num_classes, width)

    def forward(self, timesteps: Tensor, labels: Int[Tensor, " b"]) -> Float[Tensor, "b width"]:
        return self.timestep_embedder(timesteps) + self.class_embedder(labels)


def condition_embedding(config: TransformerConfig) -> TimestepSizeEmbedding | TimestepClassEmbedding:
    """What modulates the blocks: timestep and picture size (text), or timestep and class."""
    shift = config.timestep_freq_shift
    if config.conditioning == "text":
        return TimestepSizeEmbedding(config.width, config.use_additional_conditions, shift)
    return TimestepClassEmbedding(config.num_embeds_ada_norm, config.width, shift)


class CaptionProjection(nn.Module):
    """Caption MLP of the paper: text encoder width to D, GELU (tanh) between."""

    def __init__(self, caption_channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(caption_channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, text: Float[Tensor, "b l caption"]) -> Float[Tensor, "b l width"]:
        return self.linear_2(gelu_tanh(self.linear_1(text)))


def sincos_positions(
    width: int, rows: int, columns: int, *, base_size: int, interpolation_scale: float
) -> Float[Tensor, "n width"]:
    """2-D sin-cos table; the first half of the channels encodes the column, sines before cosines.

    Positions are `arange(g) / (g / base_size) / interpolation_scale`, so that every grid spans the
    same range: that is what carries a 256 px model over to other sizes and shapes.
    """
    quarter = width // 4
    frequencies = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)

    def waves(count: int) -> Tensor:
        positions = torch.arange(count, dtype=torch.float32) / (count / base_size) / interpolation_scale
        angles = positions.double()[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1).float()  # (count, width / 2)

    by_column = waves(columns)[None, :, :].expand(rows, -1, -1)
    by_row = waves(rows)[:, None, :].expand(-1, columns, -1)
    return torch.cat([by_column, by_row], dim=-1).reshape(rows * columns, width)


class PatchEmbed(nn.Module):
    """Cut latents into patches, project them to tokens, add positions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.base_size = config.sample_size // config.patch_size
        self.interpolation_scale = config.interpolation_scale
        self.proj = nn.Conv2d(
            config.in_channels, config.width, kernel_size=config.patch_size, stride=config.patch_size
        )
        self._tables: dict[tuple[int, int, torch.device], Tensor] = {}

    def positions(self, rows: int, columns: int, device: torch.device) -> Float[Tensor, "n width"]:
        """The position table of a grid in float32, computed once a grid and device."""
        key = (rows, columns, device)
        if key not in self._tables:
            table = sincos_positions(
                self.proj.out_channels,
                rows,
                columns,
                base_size=self.base_size,
                interpolation_scale=self.interpolation_scale,
            )
            self._tables[key] = table.to(device)
        return self._tables[key]

    def forward(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n width"]:
        batch, channels, height, width = latents.shape
        p = self.patch_size
        rows, columns = height // p, width // p
        if channels != self.proj.in_channels or height % p or width % p:
            raise ValueError(
                f"latents of {channels} channels and {height}x{width}: this model takes "
                f"{self.proj.in_channels} channels and sides that are multiples of {p}"
            )
        # A strided convolution without overlap is a linear layer on flattened patches, and faster so.
        patches = latents.reshape(batch, channels, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5)
        tokens = nn.functional.linear(
            patches.reshape(batch, rows * columns, channels * p * p),
            self.proj.weight.flatten(1),
            self.proj.bias,
        )
        # Added in float32 and rounded once.
        return (tokens + self.positions(rows, columns, latents.device)).to(tokens.dtype)


def padding_bias(mask: Bool[Tensor, "b l"], dtype: torch.dtype) -> Float[Tensor, "b 1 1 l"]:
    """0 on caption tokens and -10000 on padding.

    Additive, not boolean: a fully masked caption then averages its padding instead of giving NaN.
    """
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(~mask, -10_000.0)[:, None, None, :]
