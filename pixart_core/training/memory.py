"""Memory settings of a process that trains on a CPU."""

import ctypes
import sys

# Numbers of glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks instead of handing them back to the kernel.

    Every training step frees and takes the same activations; without this each is mapped and zeroed
    anew, which cost 12 to 18 % of a step (quickstart's stage 2, 2 cores).

    Returns:
        Whether the C library took the settings; another one than glibc has its own ways.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 128 * 2**20}
    return all(mallopt(number, value) == 1 for number, value in settings.items())
