"""The named sizes of DiT (Peebles & Xie, 2023, Table 1), which PixArt keeps; XL is the paper's model."""

from typing import Literal, NamedTuple

SizeName = Literal["S", "B", "L", "XL"]


class Size(NamedTuple):
    """Depth and width of a transformer; width = heads x head_dim. Field names are diffusers'."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int


SIZES: dict[str, Size] = {
    "S": Size(12, 6, 64),  # width 384
    "B": Size(12, 12, 64),  # 768
    "L": Size(24, 16, 64),  # 1024
    "XL": Size(28, 16, 72),  # 1152
}
