"""Laws of a manifest that is replaced: it stays as it was when what is made of the new one is refused."""

import os
from pathlib import Path

import pytest
from extraction import files, make_step, write_encoders, write_pictures

from pixart_core.artifacts import manifest_guard
from pixart_core.artifacts.manifest_guard import manifest_kept_on_failure
from pixart_core.encoders.extract import run_extraction
from pixart_core.errors import UserError
from pixart_core.progress import Silent

NAMES = ("manifest.jsonl", "dropped.jsonl", "card.json")


def write_all(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        new = folder / "new"
        new.write_text(f"{name} {text}")
        new.replace(folder / name)


def replace_all(folder: Path, error: BaseException) -> None:
    """What an extraction does whose data are refused."""
    with manifest_kept_on_failure(folder):
        (folder / "card.json").unlink(missing_ok=True)
        write_all(folder, "new")
        raise error


def test_a_store_that_refuses_other_data_keeps_its_manifest(tmp_path: Path) -> None:
    data, encoders = write_pictures(tmp_path / "data", range(9)), write_encoders(tmp_path / "encoders")
    store = tmp_path / "store"
    run_extraction(make_step(data, encoders), store, Silent())
    before = files(store)
    with pytest.raises(UserError, match=r"5 of 9 images .* are gone"):
        run_extraction(make_step(data, encoders, limit=4), store, Silent())
    before.pop("manifest/inspected.jsonl")  # a log of what is known; a limited scan adds to it
    assert {name: data for name, data in files(store).items() if "inspected" not in name} == before


@pytest.mark.parametrize("links", [True, False])
def test_after_an_error_the_old_files_are_back_and_after_success_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links here")))
    write_all(tmp_path, "old")
    old = files(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        replace_all(tmp_path, KeyboardInterrupt())
    assert files(tmp_path) == old
    with manifest_kept_on_failure(tmp_path):
        write_all(tmp_path, "new")
    assert files(tmp_path) == {name: f"{name} new".encode() for name in NAMES}


@pytest.mark.parametrize("written", range(4))
def test_a_killed_run_is_undone_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    write_all(tmp_path, "old")
    old = files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(manifest_guard, "_put_back", lambda _: None)
        patch.setattr(manifest_guard, "_forget", lambda _: None)
        with manifest_kept_on_failure(tmp_path):
            for name in NAMES[:written]:
                (tmp_path / "new").write_text("new")
                (tmp_path / "new").replace(tmp_path / name)
    with manifest_kept_on_failure(tmp_path):
        now = {name: data for name, data in files(tmp_path).items() if not name.startswith(".")}
        assert now == old
    assert files(tmp_path) == old


def test_a_first_manifest_that_is_refused_leaves_nothing_to_put_back(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="refused"):
        replace_all(tmp_path, UserError("refused"))
    assert files(tmp_path) == {name: f"{name} new".encode() for name in NAMES}
