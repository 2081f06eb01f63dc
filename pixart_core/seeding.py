"""Random draws that depend on (seed, what for, which item) and on nothing else.

A run that is resumed, re-sharded or batched differently draws the same numbers, because no draw
depends on how many were made before it (the first trap of multi-GPU trainers: one seed for all ranks).
"""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Hash `parts` to an unsigned 63-bit seed, e.g. `derive_seed(run_seed, "noise", step, slot)`.

    63 bits, because `torch.Generator.manual_seed` and numpy both take them as they are.
    """
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
