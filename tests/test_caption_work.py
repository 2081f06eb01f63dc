"""The unfinished state of captions: torn files, full disks, several launches, plans."""

import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixart_core.artifacts.caption_parts import PARTS, locked_captions, open_part
from pixart_core.artifacts.caption_plan import Batches, PositionOf
from pixart_core.artifacts.caption_work import CaptionWork, read_todo
from pixart_core.artifacts.captions import CAPTIONS, SETTINGS, CaptionRow
from pixart_core.errors import PixartError, UserError

SETTINGS_ = {"prompt": "?"}
IDS = [f"{number * 0x123456789ABCDE1:016x}" for number in (5, 3, 14, 7, 1, 0, 9, 12, 6, 2)]
Todo = list[list[str]]


def backwards(positions: Any) -> Any:
    """A plan need not follow the manifest."""
    return positions[::-1]


def rows(*ids: str) -> list[CaptionRow]:
    return [CaptionRow(row_id, f"caption of {row_id}\n\n.", ("truncated",)) for row_id in ids]


def begin(folder: Path) -> tuple[CaptionWork, Todo]:
    """A launch begins: (its work, the ids of each batch to do)."""
    folder.mkdir(exist_ok=True)
    work = CaptionWork(folder, SETTINGS_, IDS)
    return work, ids_of(work.plan(2, backwards))


def ids_of(batches: Batches) -> Todo:
    return [[IDS[position] for position in batches[number]] for number in range(len(batches))]


def fill(folder: Path, batches: Todo, rank: int = 0) -> None:
    with open_part(folder, rank) as part:
        for batch in batches:
            part.append(rows(*batch))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.62, 0.8, 0.99, 1.0])
def test_a_part_torn_at_any_byte_loses_only_its_last_batch(tmp_path: Path, share: float) -> None:
    _, todo = begin(tmp_path)
    fill(tmp_path, todo[:3])
    path = tmp_path / PARTS / "part-00000.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    batches_left = whole[: int(share * len(whole))].count(b"\n\n")
    work, again = begin(tmp_path)
    assert again == todo[batches_left:]
    assert not work.complete
    assert path.stat().st_size == len(b"\n\n".join([*whole.split(b"\n\n")[:batches_left], b""]))


def test_rows_come_in_the_order_of_the_manifest_from_whichever_process_made_them(tmp_path: Path) -> None:
    work, todo = begin(tmp_path)
    assert todo == [[a, b] for a, b in zip(IDS[::-2], IDS[-2::-2], strict=True)]
    assert ids_of(read_todo(tmp_path)) == todo
    for rank in range(3):
        fill(tmp_path, todo[rank::3], rank)
    work.refresh()
    assert work.complete
    assert list(work.rows()) == rows(*IDS)
    begin_again = CaptionWork(tmp_path, SETTINGS_, IDS[2:])
    assert len(read_todo(tmp_path)) == 0  # a launch that finds all done has nothing to do
    assert len(begin_again.others) == 2  # of data that was larger once: kept, at the end
    found = list(begin_again.rows())
    assert found[:8] == rows(*IDS[2:])
    assert sorted(row.id for row in found[8:]) == sorted(IDS[:2])


def test_of_other_images_the_last_caption_is_kept_else_the_first_failure(tmp_path: Path) -> None:
    draw = random.Random(0)
    reasons = ["truncated" if draw.random() < 0.8 else None for _ in range(30)]
    made = [
        CaptionRow(draw.choice(IDS[2:]), str(number), reason=reason) for number, reason in enumerate(reasons)
    ]
    expected: dict[str, CaptionRow] = {}
    for row in made:
        if not row.failed or row.id not in expected:
            expected[row.id] = row
    assert len({row.failed for row in expected.values()}) == 2
    begin(tmp_path)
    fill(tmp_path, [IDS[:2]])
    with open_part(tmp_path, 1) as part:
        for row in made:
            part.append([row])
    work = CaptionWork(tmp_path, SETTINGS_, IDS[:2])
    assert list(work.rows()) == [*rows(*IDS[:2]), *expected.values()]


def test_a_plan_is_kept_for_the_same_images_and_settings_and_made_anew_for_others(tmp_path: Path) -> None:
    work, todo = begin(tmp_path)
    fill(tmp_path, todo[:1])
    work.refresh()
    assert ids_of(work.plan(2, lambda _: pytest.fail("planned again"))) == todo[1:]
    left = [row_id for row_id in IDS if row_id not in todo[0]]
    more = CaptionWork(tmp_path, SETTINGS_, [*IDS, "f" * 16])
    batches = more.plan(2, lambda positions: positions)
    assert batches.positions.tolist() == [*(IDS.index(row_id) for row_id in left), len(IDS)]
    batches = CaptionWork(tmp_path, SETTINGS_, IDS).plan(5, lambda positions: positions)
    assert ids_of(batches) == [left[:5], left[5:]]


def test_what_failed_is_tried_again_last_and_a_caption_stands_over_a_failure(tmp_path: Path) -> None:
    _, todo = begin(tmp_path)
    failed = CaptionRow(todo[0][0], "", ("failed",), excluded=True, reason="gone")
    with open_part(tmp_path, 0) as part:
        part.append([failed, *rows(todo[0][1])])
    _, again = begin(tmp_path)
    assert again == [*todo[1:], [failed.id]]
    for row in (*rows(failed.id), failed):  # whatever comes later
        with open_part(tmp_path, 1) as part:
            part.append([row])
    work, again = begin(tmp_path)
    assert again == todo[1:]
    fill(tmp_path, again)
    work.refresh()
    assert work.complete
    assert list(work.rows()) == rows(*IDS)


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
    fill(tmp_path, todo)
    work.refresh()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(PixartError, match=r"captions\.jsonl"):
            work.publish(work.rows(), str)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not (tmp_path / CAPTIONS).exists()
    work = CaptionWork(tmp_path, SETTINGS_, IDS)
    work.publish(work.rows(), str)
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
    monkeypatch.setattr("pixart_core.artifacts.caption_parts._PATIENCE", 0.2)
    with (
        open_part(tmp_path, 3),
        pytest.raises(UserError, match=r"part-00003.*earlier launch is still writing"),
    ):
        CaptionWork(tmp_path, SETTINGS_, IDS)
    CaptionWork(tmp_path, SETTINGS_, IDS)


def test_other_settings_are_refused_only_where_something_was_made_with_them(tmp_path: Path) -> None:
    _, todo = begin(tmp_path)
    other = CaptionWork(tmp_path, {"prompt": "!"}, IDS)
    assert ids_of(other.plan(10, lambda positions: positions)) == [IDS]  # the plan was for other prompts
    begin(tmp_path)
    fill(tmp_path, todo[:1])
    with pytest.raises(UserError, match=r"prompt was '\?', now '!'.*choose another output folder"):
        CaptionWork(tmp_path, {"prompt": "!"}, IDS)


def test_damaged_rows_and_foreign_files_are_named(tmp_path: Path) -> None:
    (tmp_path / CAPTIONS).write_text('{"id": "0a", "caption": "mine", "flags": []}\n')
    with pytest.raises(UserError, match=f"has captions but no {SETTINGS}"):
        CaptionWork(tmp_path, SETTINGS_, IDS)
    (tmp_path / CAPTIONS).write_text("mine\n")
    with pytest.raises(UserError, match=r"captions\.jsonl:1: damaged row"):
        CaptionWork(tmp_path, SETTINGS_, IDS)
    (tmp_path / CAPTIONS).unlink()
    _, todo = begin(tmp_path)
    with open_part(tmp_path, 0) as part:
        part.append(rows(*todo[0]))
    with (tmp_path / PARTS / "part-00000.jsonl").open("a") as file:
        file.write("{}\n\n")
    with pytest.raises(UserError, match=r"part-00000\.jsonl:4: damaged row"):
        CaptionWork(tmp_path, SETTINGS_, IDS)


@given(
    count=st.integers(0, 40), size=st.integers(1, 9), done=st.sets(st.integers(0, 39)),
    failed=st.lists(st.integers(0, 39), max_size=5),
)  # fmt: skip
def test_batches_without_what_is_done_hold_the_rest_and_nothing_else(
    count: int, size: int, done: set[int], failed: list[int]
) -> None:
    order = np.random.default_rng(count).permutation(count).astype(np.int64)
    mask = np.array([position in done for position in range(40)])
    batches = Batches.of_size(order, size).without(mask).then_singly(np.array(failed, np.int64))
    cut = [order[start : start + size].tolist() for start in range(0, count, size)]
    left = [[position for position in batch if position not in done] for batch in cut]
    assert [batches[number] for number in range(len(batches))] == [
        *(batch for batch in left if batch), *([position] for position in failed)
    ]  # fmt: skip


@given(st.sets(st.integers(0, 2**64 - 1), max_size=50), st.integers(0, 2**64 - 1))
def test_every_id_has_its_position_and_no_other_id_has_one(keys: set[int], other: int) -> None:
    ids = [f"{key:016x}" for key in keys]
    position = PositionOf(ids)
    assert [position.of(row_id) for row_id in ids] == list(range(len(ids)))
    assert (position.of(f"{other:016x}") is None) == (other not in keys)
