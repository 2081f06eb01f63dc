"""GPUs that a plan can be made for: datasheet numbers, and assumed prices."""

import re
from typing import Literal, NamedTuple

GpuName = Literal["V100", "A100", "H100", "H200", "RTX4090"]


class Gpu(NamedTuple):
    """One GPU.

    Attributes:
        model: what the numbers belong to.
        flops: peak dense FLOP/s of the tensor cores in 16 bits with sums in 32, without sparsity (datasheet).
        gigabytes: memory, 1e9 bytes.
        watts: board power (datasheet).
        price: USD an hour. An assumption, not a quotation.
        price_source: what the assumption rests on.
    """

    model: str
    flops: float
    gigabytes: float
    watts: float
    price: float
    price_source: str


# The paper's 28,400 USD for 753 A100-days; it counts an A100 as 2.2 V100.
_PAPER_PRICE = 28_400 / 753 / 24
_RENTAL = "a round number for a rented one"

GPUS: dict[str, Gpu] = {
    "V100": Gpu("V100 SXM2 32 GB", 125e12, 32, 300, round(_PAPER_PRICE / 2.2, 2), "the paper's / 2.2"),
    "A100": Gpu("A100 SXM 80 GB", 312e12, 80, 400, round(_PAPER_PRICE, 2), "the paper's $28,400 / 753 days"),
    "H100": Gpu("H100 SXM 80 GB", 989.4e12, 80, 700, 2.50, _RENTAL),
    "H200": Gpu("H200 SXM 141 GB", 989.4e12, 141, 700, 3.50, _RENTAL),
    "RTX4090": Gpu("RTX 4090 24 GB", 165.2e12, 24, 450, 0.40, _RENTAL),
}

# What CUDA calls them. Slower variants (PCIe or NVL cards of the H100 and V100, laptops, slices of a GPU)
# have another peak, and are not in the table.
_DEVICE_NAMES = {
    "V100": r"Tesla V100-SXM2-\d+GB(-LS)?",
    "A100": r"(NVIDIA )?A100[- ](SXM4-\d+GB|PCIE-\d+GB|\d+GB PCIe)",
    "H100": r"NVIDIA H100 80GB HBM3",
    "H200": r"NVIDIA H200",
    "RTX4090": r"NVIDIA GeForce RTX 4090",
}


def gpu_named(device: str) -> Gpu | None:
    """The entry of the table for a device as CUDA names it; None if it has none."""
    return next((GPUS[name] for name, regex in _DEVICE_NAMES.items() if re.fullmatch(regex, device)), None)
