"""Weight files that others have published: at a path, at their address, on the hub, or in torch's cache."""

import dataclasses
import os
import re
import urllib.parse
from pathlib import Path

import torch

from pixart_core.errors import UserError

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w][\w./-]*)?")


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A file that numbers of a protocol are made with.

    Attributes:
        names: that it is published under.
        url: where it lies.
        sha256: how the hash of the content begins; "" where its publishers do not tell.
        size: of the download, in words.
    """

    names: tuple[str, ...]
    url: str
    sha256: str
    size: str


def cached_file(file: PublishedFile) -> Path | None:
    """The file in torch's cache, where the tools that published it put it too."""
    for name in file.names:
        path = _torch_cache() / name
        if path.is_file():
            return path
    return None


def find_published(source: str, file: PublishedFile, option: str) -> Path | None:
    """The file that `source` means; downloaded if `source` says so.

    Args:
        source: path of a file or of a folder that holds it, its address (https://...), or the hub id
            (OWNER/NAME[@REVISION]) of a repository that holds it under one of its names.
        option: that `source` was given as, for messages.

    Returns:
        None for something else: a path that is not there, a folder or a repository of other files.

    Raises:
        UserError: the download fails, or what came is not the file.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return next((path / name for name in file.names if (path / name).is_file()), None)
    if source.startswith(("https://", "http://")):
        return _from_address(source, file, option)
    if _HUB_ID.fullmatch(source) and not source.endswith((".pth", ".pt", ".safetensors")):
        return _from_hub(source, file, option)
    return None


def _torch_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _from_address(url: str, file: PublishedFile, option: str) -> Path:
    name = urllib.parse.unquote(Path(urllib.parse.urlsplit(url).path).name)
    path = _torch_cache() / name
    if path.is_file():
        return path
    expected = file.sha256 if name in file.names else ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under another name first, so that a killed download leaves nothing that looks whole.
        torch.hub.download_url_to_file(url, str(path), expected or None, progress=os.isatty(2))
    except (OSError, ValueError, RuntimeError) as error:  # network, disk, address, hash
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{option}: {url} cannot be downloaded ({reason})") from error
    return path


def _from_hub(source: str, file: PublishedFile, option: str) -> Path | None:
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    repository, _, revision = source.partition("@")
    try:
        found = HfApi().model_info(repository, revision=revision or None, timeout=20)
        names = {sibling.rfilename for sibling in found.siblings or []}
        ours = [name for name in sorted(names) if Path(name).name in file.names]
        return Path(hf_hub_download(repository, ours[0], revision=found.sha)) if ours else None
    except Exception as error:  # no network, no such repository, no access, a full disk: many classes
        for name in file.names:
            kept = try_to_load_from_cache(repository, name, None, revision or None)
            if isinstance(kept, str):
                return Path(kept)
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{option}: {source} cannot be had from the hub ({reason})") from error
