"""Weight files of others: found at a path, at an address, on the hub, and in torch's cache; never half."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pixart_core.errors import UserError
from pixart_core.evaluation.compbench import blip_weights
from pixart_core.evaluation.compbench.availability import absent_parts
from pixart_core.evaluation.inception import FILE, PUBLISHED, find_inception
from pixart_core.evaluation.published_weights import PublishedFile, find_published
from pixart_core.recipe.compbench import CompBenchOptions

# SHA-256 of b"weights" begins so (sha256sum).
SMALL = PublishedFile(("w.pth", "other-w.pth"), "https://example.org/w.pth", "9a129038", "7 bytes")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    return tmp_path / "torch/checkpoints"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(address, folder that it serves)."""
    (tmp_path / "served").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}", tmp_path / "served"
        served.shutdown()


def test_a_path_is_itself_and_a_folder_is_looked_through(tmp_path: Path) -> None:
    (tmp_path / "any.pth").write_bytes(b"x")
    assert find_published(str(tmp_path / "any.pth"), SMALL, "o") == tmp_path / "any.pth"
    assert find_published(str(tmp_path), SMALL, "o") is None
    (tmp_path / "other-w.pth").write_bytes(b"x")
    assert find_published(str(tmp_path), SMALL, "o") == tmp_path / "other-w.pth"
    assert find_published("no/such/file.pth", SMALL, "o") is None


def test_an_address_is_downloaded_once_into_torch_s_cache(server: tuple[str, Path], cache: Path) -> None:
    address, folder = server
    (folder / "w.pth").write_bytes(b"weights")
    assert find_published(f"{address}/w.pth", SMALL, "o") == cache / "w.pth"
    assert (cache / "w.pth").read_bytes() == b"weights"
    (folder / "w.pth").unlink()
    assert find_published(f"{address}/w.pth", SMALL, "o") == cache / "w.pth"


def test_what_is_not_the_published_file_does_not_stay(server: tuple[str, Path], cache: Path) -> None:
    address, folder = server
    (folder / "w.pth").write_bytes(b"weight")  # cut off
    with pytest.raises(UserError, match=r"o: http.*w\.pth cannot be downloaded .*hash"):
        find_published(f"{address}/w.pth", SMALL, "o")
    assert not list(cache.iterdir())
    with pytest.raises(UserError, match=r"cannot be downloaded .*404"):
        find_published(f"{address}/other-w.pth", SMALL, "o")
    assert not list(cache.iterdir())


def test_a_hub_id_is_searched_for_the_file_under_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    names = ["README.md", "fid/other-w.pth"]

    def info(_: object, repository: str, revision: str | None, timeout: float) -> SimpleNamespace:
        siblings = [SimpleNamespace(rfilename=name) for name in names]
        return SimpleNamespace(sha="c0ffee", siblings=siblings)

    def download(repository: str, name: str, revision: str) -> str:
        asked.append((repository, name, revision))
        return str(tmp_path / "hub.pth")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", info)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert find_published("some/body@v1", SMALL, "o") == tmp_path / "hub.pth"
    assert asked == [("some/body", "fid/other-w.pth", "c0ffee")]
    names.pop()
    assert find_published("some/body", SMALL, "o") is None


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def info(*_: object, **__: object) -> None:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", info)
    with pytest.raises(UserError, match=r"inception: some/body cannot be had from the hub \(no network at"):
        find_inception("some/body")


def test_fid_takes_what_other_tools_have_downloaded(cache: Path) -> None:
    with pytest.raises(UserError, match=r"https://github\.com/mseitzer.*6726825d\.pth \(91 MB\)"):
        find_inception(None)
    cache.mkdir(parents=True)
    for name in reversed(PUBLISHED.names):
        (cache / name).write_bytes(b"")
        assert find_inception(None) == cache / name
    assert find_inception("given.pth") == Path("given.pth")
    with pytest.raises(UserError, match=rf"holds no {FILE} or weights-inception"):
        find_inception(str(cache.parent))


def test_blip_is_found_where_its_own_code_puts_it_and_fetched_from_its_address(
    tmp_path: Path, cache: Path
) -> None:
    def parts(blip: str | None) -> tuple[list[str], list[str]]:
        options = {"categories": ("color",), "blip": blip, "blip_tokenizer": str(tmp_path)}
        missing, downloads = absent_parts(CompBenchOptions.model_validate(options | {"chunker": "textblob"}))
        return [part.part for part in missing], [part.source for part in downloads]

    name = f"BLIP-VQA weights ({blip_weights.OFFICIAL_FILE})"
    assert parts(None) == ([name], [])
    assert parts(blip_weights.OFFICIAL_URL) == ([], [blip_weights.OFFICIAL_URL])
    cache.mkdir(parents=True)
    (cache / blip_weights.OFFICIAL_FILE).write_bytes(b"")
    assert parts(None) == parts(blip_weights.OFFICIAL_URL) == ([], [])
    assert blip_weights.official_file(str(cache)) == cache / blip_weights.OFFICIAL_FILE
    assert blip_weights.official_file("Salesforce/blip-vqa-base") is None
