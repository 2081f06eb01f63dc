"""The unfinished state of captions: torn files, full disks, several launches, plans."""

import resource
from pathlib import Path

import pytest

from pixart_core.artifacts.caption_work import (
    PARTS,
    CaptionWork,
    locked_captions,
    open_part,
    read_todo,
)
from pixart_core.artifacts.captions import CAPTIONS, SETTINGS, CaptionRow
from pixart_core.errors import PixartError, UserError

SETTINGS_ = {"prompt": "?"}
IDS = [f"{number:02d}" for number in range(10)]


def pairs(ids: list[str]) -> list[list[str]]:
    """Batches of two, backwards: a plan need not follow the manifest."""
    order = ids[::-1]
    return [order[start : start + 2] for start in range(0, len(order), 2)]


def rows(*ids: str) -> list[CaptionRow]:
    return [CaptionRow(row_id, f"caption of {row_id}\n\n.", ("truncated",)) for row_id in ids]


def begin(folder: Path) -> tuple[CaptionWork, list[list[str]]]:
    folder.mkdir(exist_ok=True)
    work = CaptionWork(folder, SETTINGS_)
    return work, work.plan(IDS, 2, pairs)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.62, 0.8, 0.99, 1.0])
def test_a_part_torn_at_any_byte_loses_only_its_last_batch(tmp_path: Path, share: float) -> None:
    _, todo = begin(tmp_path)
    with open_part(tmp_path, 0) as part:
        for batch in todo[:3]:
            part.append(rows(*batch))
    path = tmp_path / PARTS / "part-00000.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    batches_left = whole[: int(share * len(whole))].count(b"\n\n")
    work, again = begin(tmp_path)
    assert again == todo[batches_left:]
    assert work.has_all(todo[0]) == (batches_left > 0)
    assert path.stat().st_size == len(b"\n\n".join([*whole.split(b"\n\n")[:batches_left], b""]))


def test_rows_come_in_the_order_asked_for_from_whichever_process_made_them(tmp_path: Path) -> None:
    work, todo = begin(tmp_path)
    assert read_todo(tmp_path) == todo
    for rank in range(3):
        with open_part(tmp_path, rank) as part:
            for batch in todo[rank::3]:
                part.append(rows(*batch))
    work = work.refresh()
    assert work.has_all(IDS)
    assert list(work.rows(IDS)) == rows(*IDS)
    assert read_todo(tmp_path) == []  # a launch that finds all done has nothing to do
    assert work.others(IDS[2:]) == [i for i in work.others([]) if i in IDS[:2]]


def test_a_plan_is_kept_for_the_same_images_and_settings_and_made_anew_for_others(tmp_path: Path) -> None:
    work, todo = begin(tmp_path)
    with open_part(tmp_path, 0) as part:
        part.append(rows(*todo[0]))
    work = work.refresh()
    refused = pytest.fail
    assert work.plan(IDS, 2, lambda _: refused("planned again")) == todo[1:]
    more = [*IDS, "x"]
    assert work.plan(more, 2, pairs) == pairs([i for i in more if i not in todo[0]])
    assert work.plan(IDS, 5, lambda ids: [ids]) == [[i for i in IDS if i not in todo[0]]]


def test_what_failed_is_tried_again_last_and_a_caption_stands_over_a_failure(tmp_path: Path) -> None:
    _, todo = begin(tmp_path)
    failed = CaptionRow(todo[0][0], "", ("failed",), excluded=True, reason="gone")
    with open_part(tmp_path, 0) as part:
        part.append([failed, *rows(todo[0][1])])
    work, again = begin(tmp_path)
    assert again == [*todo[1:], [failed.id]]
    assert not work.has_all(todo[0])
    for row in (*rows(failed.id), failed):  # whatever comes later
        with open_part(tmp_path, 1) as part:
            part.append([row])
    work, again = begin(tmp_path)
    assert again == todo[1:]
    assert list(work.rows([failed.id])) == rows(failed.id)


def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    _, todo = begin(tmp_path)
    path = tmp_path / PARTS / "part-00000.jsonl"
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_part(tmp_path, 0) as part:
        part.append(rows(*todo[0]))
        before = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(PixartError, match="what is captioned is kept, run again"):
                part.append([CaptionRow(todo[1][0], "z" * 9000), *rows(todo[1][1])])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert path.read_bytes() == before
    assert begin(tmp_path)[1] == todo[1:]


def test_a_disk_that_is_full_at_the_end_leaves_the_parts(tmp_path: Path) -> None:
    work, todo = begin(tmp_path)
    with open_part(tmp_path, 0) as part:
        for batch in todo:
            part.append(rows(*batch))
    work = work.refresh()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(PixartError, match=r"captions\.jsonl"):
            work.publish(work.rows(IDS), str)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not (tmp_path / CAPTIONS).exists()
    work = CaptionWork(tmp_path, SETTINGS_)
    work.publish(work.rows(IDS), str)
    assert (tmp_path / CAPTIONS).read_bytes().count(b"\n") == len(IDS)


def test_two_launches_never_write_the_same_captions(tmp_path: Path) -> None:
    with (
        locked_captions(tmp_path),
        pytest.raises(UserError, match="another process"),
        locked_captions(tmp_path),
    ):
        pass
    with locked_captions(tmp_path):
        pass


def test_a_process_that_outlived_its_launch_keeps_the_next_one_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path)
    monkeypatch.setattr("pixart_core.artifacts.caption_work._PATIENCE", 0.2)
    with (
        open_part(tmp_path, 3),
        pytest.raises(UserError, match=r"part-00003.*earlier launch is still writing"),
    ):
        CaptionWork(tmp_path, SETTINGS_)
    CaptionWork(tmp_path, SETTINGS_)


def test_other_settings_are_refused_only_where_something_was_made_with_them(tmp_path: Path) -> None:
    _, todo = begin(tmp_path)
    other = CaptionWork(tmp_path, {"prompt": "!"})
    assert other.plan(IDS, 2, lambda ids: [ids]) == [IDS]  # the plan was for other prompts
    begin(tmp_path)
    with open_part(tmp_path, 0) as part:
        part.append(rows(*todo[0]))
    with pytest.raises(UserError, match=r"prompt was '\?', now '!'.*choose another output folder"):
        CaptionWork(tmp_path, {"prompt": "!"})


def test_damaged_rows_and_foreign_files_are_named(tmp_path: Path) -> None:
    (tmp_path / CAPTIONS).write_text('{"id": "a", "caption": "mine", "flags": []}\n')
    with pytest.raises(UserError, match=f"has captions but no {SETTINGS}"):
        CaptionWork(tmp_path, SETTINGS_)
    (tmp_path / CAPTIONS).write_text("mine\n")
    with pytest.raises(UserError, match=r"captions\.jsonl:1: damaged row"):
        CaptionWork(tmp_path, SETTINGS_)
    (tmp_path / CAPTIONS).unlink()
    _, todo = begin(tmp_path)
    with open_part(tmp_path, 0) as part:
        part.append(rows(*todo[0]))
    with (tmp_path / PARTS / "part-00000.jsonl").open("a") as file:
        file.write("{}\n\n")
    with pytest.raises(UserError, match=r"part-00000\.jsonl:4: damaged row"):
        CaptionWork(tmp_path, SETTINGS_)
