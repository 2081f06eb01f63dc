"""What a transformer is made of. Field names follow diffusers where diffusers has one."""

import dataclasses
import math
from typing import Any, Literal, Self

Conditioning = Literal["text", "class"]
Modulation = Literal["adaln_single", "adaln"]

# The combinations that the paper and DiT have, and diffusers' class of each.
_PUBLISHED: dict[tuple[Conditioning, Modulation], str] = {
    ("text", "adaln_single"): "PixArtTransformer2DModel",
    ("class", "adaln"): "DiTTransformer2DModel",
}
# The other two go by a name of our own. diffusers' classes do not compare names, but refuse its `norm_type`.
OWN_CLASS = "PixArtVariantTransformer"
_COUNTS = (
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "num_layers",
    "patch_size",
    "sample_size",
    "caption_channels",
    "num_embeds_ada_norm",
)
_CHOICES: dict[str, tuple[Any, ...]] = {
    "conditioning": ("text", "class"),
    "modulation": ("adaln_single", "adaln"),
    "embedders": ("shared", "per_block"),
    "use_additional_conditions": (False, True),
    "timestep_freq_shift": (0, 1),
}
# What `norm_type` says of the class that diffusers has since split up.
_OLDER_CLASSES = {"ada_norm_single": "PixArtTransformer2DModel", "ada_norm_zero": "DiTTransformer2DModel"}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape of a PixArt (`conditioning="text"`) or DiT (`"class"`) transformer; default PixArt XL/2.

    Attributes:
        modulation: `adaln_single`, one MLP for all blocks and a table E(i) in each (the paper), or `adaln`,
            an MLP in each (DiT). None becomes the one that goes with `conditioning` in the papers.
        sample_size: side of the latents that the position embedding is scaled for.
        interpolation_scale: divides the positions; the paper's 1024 px model uses 2.
        out_channels: `2 * in_channels` with learned variance (the paper), else `in_channels`.
        caption_channels: width of the text encoder's tokens (text only).
        use_additional_conditions: resolution and aspect ratio embeddings (text only, MS variant).
        num_embeds_ada_norm: number of classes, the null class not counted (class only).
        timestep_freq_shift: 0 in DiT and PixArt; diffusers' `DiTTransformer2DModel` uses 1 (adaln only).
        embedders: DiT shares one timestep and class embedder; diffusers keeps one a block (class and adaln).
        mlp_norm_eps: eps of the norm before the feed-forward (diffusers' DiT has 1e-5 there); with
            adaln_single of all norms in the blocks.
    """

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int = 8
    num_layers: int = 28
    patch_size: int = 2
    sample_size: int = 32
    interpolation_scale: float = 1.0
    conditioning: Conditioning = "text"
    modulation: Modulation | None = None
    caption_channels: int = 4096
    use_additional_conditions: bool = False
    num_embeds_ada_norm: int = 1000
    timestep_freq_shift: int = 0
    embedders: Literal["shared", "per_block"] = "shared"
    mlp_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.modulation is None:
            published = "adaln_single" if self.conditioning == "text" else "adaln"
            object.__setattr__(self, "modulation", published)
        self._check_values()
        if self.conditioning == "class" and self.use_additional_conditions:
            raise ValueError("use_additional_conditions goes with conditioning text, not with class")
        if self.modulation == "adaln_single" and self.timestep_freq_shift != 0:
            raise ValueError("timestep_freq_shift goes with modulation adaln, not with adaln_single")
        if (self.conditioning, self.modulation) != ("class", "adaln") and self.embedders != "shared":
            raise ValueError("embedders per_block goes with conditioning class and modulation adaln only")
        if self.width % 4:
            raise ValueError(f"width {self.width} (heads x head_dim) is not a multiple of 4")
        if self.use_additional_conditions and self.width % 3:
            raise ValueError(f"use_additional_conditions needs a width that 3 divides, not {self.width}")
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise ValueError(
                f"out_channels {self.out_channels} is neither in_channels nor twice it ({self.in_channels})"
            )
        if self.sample_size % self.patch_size:
            raise ValueError(f"sample_size {self.sample_size} is not a multiple of patch {self.patch_size}")

    def _check_values(self) -> None:
        """Files are read into this class: a value of another kind would only fail somewhere in torch."""
        for name in _COUNTS:
            _check_count(name, getattr(self, name))
        for name in ("interpolation_scale", "mlp_norm_eps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name} = {value!r} is no positive number")
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} = {value!r} is none of {', '.join(map(repr, allowed))}")

    @property
    def width(self) -> int:
        """D: channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def learned_variance(self) -> bool:
        """Whether the second half of the output interpolates the variance."""
        return self.out_channels == 2 * self.in_channels

    def to_diffusers(self) -> dict[str, Any]:
        """The `config.json` of diffusers' class; our own few fields ride along under `pixart`.

        The two combinations that diffusers has no class for go by `OWN_CLASS` and hold all our fields.
        """
        published = self.diffusers_class
        if published is None:
            own = {"_class_name": OWN_CLASS, "norm_type": f"{self.conditioning}_{self.modulation}"}
            return own | dataclasses.asdict(self)
        shared = {
            "_class_name": published,
            "activation_fn": "gelu-approximate",
            "attention_bias": True,
            "attention_head_dim": self.attention_head_dim,
            "dropout": 0.0,
            "in_channels": self.in_channels,
            "norm_elementwise_affine": False,
            "norm_eps": self.mlp_norm_eps,
            "norm_num_groups": 32,
            "num_attention_heads": self.num_attention_heads,
            "num_layers": self.num_layers,
            "out_channels": self.out_channels,
            "patch_size": self.patch_size,
            "sample_size": self.sample_size,
            "upcast_attention": False,
        }
        if self.conditioning == "class":
            return shared | {
                "norm_type": "ada_norm_zero",
                "num_embeds_ada_norm": self.num_embeds_ada_norm,
                "pixart": {
                    "timestep_freq_shift": self.timestep_freq_shift,
                    "embedders": self.embedders,
                    "interpolation_scale": self.interpolation_scale,
                },
            }
        return shared | {
            "caption_channels": self.caption_channels,
            "cross_attention_dim": self.width,
            "interpolation_scale": self.interpolation_scale,
            "norm_type": "ada_norm_single",
            "num_embeds_ada_norm": 1000,
            "use_additional_conditions": self.use_additional_conditions,
        }

    @property
    def diffusers_class(self) -> str | None:
        """diffusers' class of this combination of conditioning and modulation; None: it has none."""
        assert self.modulation is not None
        return _PUBLISHED.get((self.conditioning, self.modulation))

    @classmethod
    def from_diffusers(cls, config: dict[str, Any]) -> Self:
        """Read the `config.json` of `PixArtTransformer2DModel`, `DiTTransformer2DModel` or `OWN_CLASS`.

        Hub folders of before 2024 name `Transformer2DModel`, which both were variants of then.

        Raises:
            ValueError: another class, or a setting that changes the forward pass and is not ours.
        """
        if not isinstance(config, dict):
            raise ValueError(f"a JSON object was expected, not {config!r:.40}")
        name = config.get("_class_name")
        if name == OWN_CLASS:
            return cls(**{field.name: config[field.name] for field in dataclasses.fields(cls)})
        if name == "Transformer2DModel":
            norm = config.get("norm_type")
            name = _OLDER_CLASSES.get(str(norm), f"{name} with {norm}")
        if name not in _PUBLISHED.values():
            raise ValueError(f"config of {name}, expected PixArtTransformer2DModel or DiTTransformer2DModel")
        supported = {
            "activation_fn": "gelu-approximate",
            "attention_bias": True,
            "norm_elementwise_affine": False,
        }
        for key, value in supported.items():
            if config.get(key, value) != value:
                raise ValueError(f"{key} = {config[key]!r} is not supported, only {value!r}")
        if name == "DiTTransformer2DModel":
            return cls(**_shared_fields(config), **_class_fields(config))
        return cls(**_shared_fields(config), **_text_fields(config))


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} = {value!r} is no positive whole number")


def _shared_fields(config: dict[str, Any]) -> dict[str, Any]:
    """What both of diffusers' classes have."""
    same = (
        "num_attention_heads",
        "attention_head_dim",
        "in_channels",
        "num_layers",
        "patch_size",
        "sample_size",
    )
    fields = {name: config[name] for name in same}
    return fields | {"out_channels": config.get("out_channels") or config["in_channels"]}


def _class_fields(config: dict[str, Any]) -> dict[str, Any]:
    ours = config.get("pixart", {"timestep_freq_shift": 1, "embedders": "per_block"})
    return ours | {
        "conditioning": "class",
        "num_embeds_ada_norm": config["num_embeds_ada_norm"],
        "mlp_norm_eps": config.get("norm_eps", 1e-5),
    }


def _text_fields(config: dict[str, Any]) -> dict[str, Any]:
    sample_size, interpolation_scale = config["sample_size"], config.get("interpolation_scale")
    _check_count("sample_size", sample_size)
    if interpolation_scale is None:
        interpolation_scale = max(sample_size // 64, 1)  # diffusers' rule, as is that of `additional` below
    additional = config.get("use_additional_conditions")
    return {
        "conditioning": "text",
        "caption_channels": config["caption_channels"],
        "mlp_norm_eps": config.get("norm_eps", 1e-6),
        "interpolation_scale": interpolation_scale,
        "use_additional_conditions": sample_size == 128 if additional is None else additional,
    }
