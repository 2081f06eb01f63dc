"""Models on the Hugging Face hub: which commit is meant, and the files of it that are asked for."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path

from pixart_core.errors import UserError

_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w][\w./-]*)?")
_MAIN = "main"
_PARTS = ("transformer", "vae", "text_encoder")
# Some of these is in the cache if anything of a model is.
_ONE_OF = ("model_index.json", "config.json", *(f"{part}/config.json" for part in _PARTS))
_SECONDS = 20  # without an answer


@dataclasses.dataclass(frozen=True)
class HubModel:
    """A repository as it was at one commit.

    Attributes:
        branch: what was asked for: a branch, a tag, or a commit.
        files: names; those in the cache where the hub cannot be asked.
        cached: the hub cannot be asked: only what is in the cache can be had.
    """

    repository: str
    branch: str
    commit: str
    files: frozenset[str]
    cached: bool = False

    def __str__(self) -> str:
        return f"{self.repository}@{self.commit}"

    def download(self, patterns: Sequence[str]) -> Path:
        """The folder of this commit in the cache, with the files that match at least.

        Raises:
            UserError: the download fails.
        """
        from huggingface_hub import snapshot_download

        get = functools.partial(
            snapshot_download,
            self.repository,
            allow_patterns=list(patterns),
            local_files_only=self.cached,
            dry_run=False,
        )
        try:
            # By the branch's name first: offline, the cache tells the commit of those it was asked for.
            folder = Path(get(revision=self.branch))
            if folder.name != self.commit:  # the branch has moved just now
                folder = Path(get(revision=self.commit))
        except Exception as error:  # network, disk, access: many classes
            raise UserError(f"{self.repository}: cannot be had from the hub ({_reason(error)})") from error
        return folder


def split_revision(source: str) -> tuple[str, str | None]:
    """Repository and revision (branch, tag or commit) of `ID` or `ID@REVISION`."""
    repository, _, revision = source.partition("@")
    return repository, revision or None


def is_hub_id(source: str) -> bool:
    """Whether `source` can only be `OWNER/NAME` or `OWNER/NAME@REVISION` on the hub, not a path mistyped."""
    path = Path(source).expanduser()
    return bool(_ID.fullmatch(source)) and not path.exists() and not path.parent.exists()


def find_on_hub(source: str, what: str) -> HubModel:
    """The commit that `source` (`ID` or `ID@REVISION`) means now; offline, the one in the cache.

    Args:
        what: it is for, for messages, e.g. "vae".

    Raises:
        UserError: no such repository or revision, one that needs a login, or neither the hub nor the cache
            has it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    repository, revision = split_revision(source)
    try:
        # Asked once, without the retries of a download: a machine without network shall say so at once.
        found = HfApi().model_info(repository, revision=revision, timeout=_SECONDS)
    except Exception as error:  # no network, offline mode, no such repository, no access: many classes
        cached = _in_cache(repository, revision, what)
        if cached is not None:
            return cached
        if isinstance(error, GatedRepoError):
            why = f"asks you to accept its terms at huggingface.co/{repository}; then `hf auth login`"
        elif isinstance(error, RevisionNotFoundError):
            why = f"has no revision {revision} of it"
        elif isinstance(error, RepositoryNotFoundError):
            why = "has no such model (a private one needs `hf auth login`)"
        else:
            why = f"cannot give it ({_reason(error)})"
        here = "no folder of that name here, not in the Hugging Face cache"
        raise UserError(f"{what} {source!r}: {here}, and the hub {why}") from error
    files = frozenset(sibling.rfilename for sibling in found.siblings or [])
    return HubModel(repository, revision or _MAIN, str(found.sha), files)


def _in_cache(repository: str, revision: str | None, what: str) -> HubModel | None:
    from huggingface_hub import try_to_load_from_cache

    for name in (*_ONE_OF, f"{what}/config.json"):
        path = try_to_load_from_cache(repository, name, None, revision)
        if isinstance(path, str):
            folder = Path(path.removesuffix(name))
            files = frozenset(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
            return HubModel(repository, revision or _MAIN, folder.name, files, cached=True)
    return None


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
