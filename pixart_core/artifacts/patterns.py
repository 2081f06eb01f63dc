"""Sources that stand for several files: shards as `x/*.tar` or `x/{000..012}.tar`."""

import glob
import itertools
import os
import re
from pathlib import Path


def expand_pattern(pattern: str) -> list[Path]:
    """The files, sorted, behind a pattern with * ? [] and {a,b} {000..012}; none is no error here."""
    files = {
        Path(name)
        for single in expand_braces(pattern)
        for name in ([single] if os.path.isfile(single) else glob.glob(single, recursive=True))
        if os.path.isfile(name)
    }
    return sorted(files)


def fixed_part(pattern: str) -> Path:
    """The folder that all files of a pattern lie below, absolute."""
    fixed = re.split(r"[*?\[{]", pattern, maxsplit=1)[0]
    return Path(os.path.abspath(os.path.dirname(fixed) or "."))


def is_pattern(text: str) -> bool:
    """Whether `text` has a character that a pattern is made of."""
    return re.search(r"[*?\[{]", text) is not None


def expand_braces(pattern: str) -> list[str]:
    """Expand {a,b} and {000..012} as a shell does (WebDataset shards are written so)."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    inner = match.group(1)
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if numbers:
        first, last = numbers.groups()
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        options = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        options = inner.split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return list(itertools.chain.from_iterable(expand_braces(head + option + tail) for option in options))
