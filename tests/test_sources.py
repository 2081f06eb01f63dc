"""From data as users have them to a manifest: nothing lost, nothing silently skipped, always the same."""

import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from broken_images import encode, noise, unusable, write_salted_folder
from PIL import Image

from pixart_core.artifacts.card import Card
from pixart_core.artifacts.manifest import Manifest, read_dropped, write_manifest
from pixart_core.artifacts.patterns import expand_braces
from pixart_core.data.images import ImageReader
from pixart_core.data.scan import manifest_for, scan_images
from pixart_core.errors import UserError
from pixart_core.progress import Silent
from pixart_core.recipe.data import DataOptions

EMOJI = Path(__file__).parents[1].parent / "shared" / "data" / "emoji"


def scan(data: Path | str, **options: object) -> tuple[Manifest, list[dict[str, str]]]:
    return scan_images(DataOptions(data=str(data), **options), Silent())  # type: ignore[arg-type]


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(*keys: str) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for number, key in enumerate(keys):
        members[f"{key}.png"] = encode(noise(20 + number, 20, seed=number))
        members[f"{key}.txt"] = f"a caption of {key}\n".encode()
        members[f"{key}.json"] = json.dumps({"group": f"g{number % 3}", "number": number}).encode()
    return members


def test_a_folder_full_of_trouble_keeps_the_good_and_names_the_rest(tmp_path: Path) -> None:
    folder = write_salted_folder(tmp_path / "salted", good=14)
    manifest, dropped = scan(folder, max_bad_fraction=0.5)
    assert len(manifest.records) == 14
    assert {row["path"] for row in dropped} == set(unusable())
    assert all(row["reason"] for row in dropped)
    assert {r.caption for r in manifest.records} == {f"caption of image {index}." for index in range(14)}
    reader = ImageReader(manifest.folder)
    for record in manifest.records:
        assert reader.read(record).size == (record.width, record.height)
    with pytest.raises(UserError, match=r"8 of 22 images cannot be used: .*max_bad_fraction"):
        scan(folder, max_bad_fraction=0.3)


def test_images_in_formats_that_are_not_read_are_told_and_not_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.JPG", "c.heic", "d.SVG", "e.zip", "f.docx", "b.cr2"):
        (folder / name).write_bytes(encode(noise()) if name[0] == "a" else encode(noise(), "JPEG"))
    write_tar(
        folder / "t.tar", {"x.jxl": b"1", "y.heic": b"1", "y.jpg": encode(noise(), "JPEG"), "z.txt": b""}
    )
    manifest, dropped = scan(folder, max_bad_fraction=1.0)
    assert [Path(r.member or r.path).name for r in manifest.records] == ["a.png", "b.JPG", "y.jpg"]
    told = {row["path"]: row["reason"].partition(":")[0] for row in dropped}
    other = "format that is not read"
    assert told == {"c.heic": other, "d.SVG": other, "e.zip": "compressed archive", "t.tar/x.jxl": other}
    (folder / "metadata.csv").write_text("file_name,text\na.png,x\nc.heic,y\n")
    assert scan(folder, max_bad_fraction=1.0)[1] == dropped  # a row of the table tells no second time
    _, dropped = scan(f"{folder}/[a-d].*", max_bad_fraction=1.0)
    assert {"c.heic", "d.SVG"} <= {row["path"] for row in dropped}


def test_a_scan_is_a_function_of_the_data_wherever_it_lies(tmp_path: Path) -> None:
    folder = write_salted_folder(tmp_path / "one", good=6)
    options = {"max_bad_fraction": 1.0, "heldout_fraction": 0.5}
    first, dropped = scan(folder, **options)
    assert scan(folder, **options) == (first, dropped)
    shutil.move(folder, tmp_path / "two")
    moved, moved_dropped = scan(tmp_path / "two", **options)
    assert [(r.id, r.split) for r in moved.records] == [(r.id, r.split) for r in first.records]
    assert moved_dropped == dropped


def test_the_same_stem_in_two_folders_is_two_images_with_their_own_captions(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(encode(noise()))
        (tmp_path / name / "x.txt").write_text(f"picture {name}")
    manifest, _ = scan(tmp_path)
    assert [r.caption for r in manifest.records] == ["picture a", "picture b"]
    assert len({r.id for r in manifest.records}) == 2


def test_captions_come_from_txt_then_json_and_broken_side_files_are_told(tmp_path: Path) -> None:
    for name in ("both", "json", "none", "broken", "latin", "list"):
        (tmp_path / f"{name}.png").write_bytes(encode(noise()))
    (tmp_path / "both.txt").write_text("\ufefffrom the text\n")
    (tmp_path / "both.json").write_text('{"caption": "from the JSON", "style": "flat"}')
    (tmp_path / "json.json").write_text('{"text": "only JSON"}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    manifest, dropped = scan(tmp_path, max_bad_fraction=0.9)
    captions = {Path(r.path).stem: r.caption for r in manifest.records}
    assert captions == {"both": "from the text", "json": "only JSON", "none": None}
    assert next(r for r in manifest.records if r.caption == "from the text").meta["style"] == "flat"
    assert {row["path"]: row["reason"] for row in dropped} == {
        "broken.png": "its .json file is not JSON",
        "latin.png": "its .txt file is not UTF-8",
        "list.png": "its .json file is not a JSON object",
    }


def test_hidden_files_are_no_images_and_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encode(noise()))
    (tmp_path / "._x.png").write_bytes(b"resource fork")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "x.png").write_bytes(b"?")
    (tmp_path / "again").symlink_to(tmp_path)
    manifest, dropped = scan(tmp_path)
    assert [Path(r.path).name for r in manifest.records] == ["x.png"]
    assert dropped == []


def test_tars_by_file_folder_glob_and_braces_have_the_same_ids(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"s-{number:02d}.tar", samples("a", "b/c"))
    by_folder = scan(tmp_path)[0].records
    assert len({r.id for r in by_folder}) == 6
    assert by_folder[1].member == "b/c.png"
    assert by_folder[1].caption == "a caption of b/c"
    for pattern in ("s-*.tar", "s-{00..02}.tar", "s-{00,01,02}.tar", "s-0[012].tar"):
        assert scan(tmp_path / pattern)[0].records == by_folder
    assert scan(tmp_path / "s-01.tar")[0].records == by_folder[2:4]


def test_a_mask_beside_an_image_is_a_field_but_dots_in_names_are_names(tmp_path: Path) -> None:
    png = encode(noise())
    write_tar(
        tmp_path / "0.tar",
        {"x.png": png, "x.mask.png": png, "photo 1.5.png": png, "photo 1.5.txt": b"dotted", "y.cls": b"3"},
    )
    records = scan(tmp_path)[0].records
    assert [(r.member, r.caption) for r in records] == [("x.png", None), ("photo 1.5.png", "dotted")]


def test_a_damaged_archive_gives_what_is_whole_and_says_so(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "in" / "0.tar", samples("a", "b", "c")).read_bytes()
    with tarfile.open(tmp_path / "in" / "0.tar") as archive:
        second, last = archive.getmember("b.png"), archive.getmember("c.png")
    place = tmp_path / "in" / "0.tar"

    place.write_bytes(whole[: last.offset_data + last.size // 2])  # within the last image
    manifest, dropped = scan(tmp_path / "in", max_bad_fraction=0.9)
    assert [r.member for r in manifest.records] == ["a.png", "b.png"]
    assert [row["path"] for row in dropped] == ["0.tar", "0.tar/c.png"]

    place.write_bytes(whole[: second.offset])  # between two members, where tarfile sees nothing wrong
    manifest, dropped = scan(tmp_path / "in", max_bad_fraction=0.9)
    assert len(manifest.records) == 1
    assert "cut off" in dropped[0]["reason"]

    place.write_bytes(whole[: second.offset] + b"\xff" * 512 + whole[second.offset + 512 :])  # a bad header
    manifest, dropped = scan(tmp_path / "in", max_bad_fraction=0.9)
    assert len(manifest.records) == 1
    assert f"damaged header at byte {second.offset}" in dropped[0]["reason"]

    place.write_bytes(whole + whole)  # two archives put together
    assert "after its end mark" in scan(tmp_path / "in", max_bad_fraction=0.9)[1][0]["reason"]

    write_tar(tmp_path / "in" / "1.tar", samples("a"))
    place.write_bytes(b"no tar at all")
    assert "not an uncompressed tar" in scan(tmp_path / "in", max_bad_fraction=0.9)[1][0]["reason"]


def test_keys_are_held_out_together_and_stay_so_when_data_grow(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for number in range(60):
        members[f"{number}.png"] = encode(Image.new("RGB", (8, 8)))
        members[f"{number}.json"] = json.dumps({"concept": number % 10, "style": number % 2}).encode()
    write_tar(tmp_path / "0.tar", members)
    options = {"heldout_fraction": 0.3, "heldout_keys": ("concept", "style")}
    first = scan(tmp_path, **options)[0]
    groups: dict[tuple[int, int], set[str]] = {}
    for record in first.records:
        groups.setdefault((record.meta["concept"], record.meta["style"]), set()).add(record.split)
    assert all(len(splits) == 1 for splits in groups.values())
    assert {"train", "heldout"} == {r.split for r in first.records}
    write_tar(tmp_path / "1.tar", members)
    grown = {r.id: r.split for r in scan(tmp_path, **options)[0].records}
    assert all(grown[r.id] == r.split for r in first.records)


def test_labels_are_the_sorted_values_of_a_key(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {**samples("a", "b", "c", "d"), "e.png": encode(noise())})
    manifest, _ = scan(tmp_path, label_key="group")
    assert manifest.label_names == ("g0", "g1", "g2")
    assert [r.label for r in manifest.records] == [0, 1, 2, 0, None]
    assert scan(tmp_path, label_key="number")[0].label_names == ("0", "1", "2", "3")


def test_limit_takes_the_first_usable_images(tmp_path: Path) -> None:
    folder = write_salted_folder(tmp_path / "salted", good=6)
    everything = scan(folder, max_bad_fraction=1.0)[0].records
    assert scan(folder, max_bad_fraction=1.0, limit=4)[0].records == everything[:4]
    # A limit that is reached got its images, whatever lies before them.
    assert scan(folder, max_bad_fraction=0.0, limit=1)[0].records == everything[:1]


def test_a_manifest_is_data_too_with_its_own_split(tmp_path: Path) -> None:
    write_tar(tmp_path / "data" / "0.tar", samples("a", "b", "c"))
    manifest, dropped = scan(tmp_path / "data", heldout_fraction=0.5)
    write_manifest(tmp_path / "data", manifest.records, dropped, Card("manifest", {}, {}))
    again, _ = scan(tmp_path / "data", limit=2)
    assert [r.id for r in again.records] == [r.id for r in manifest.records[:2]]
    assert ImageReader(again.folder).read(again.records[1]).size == (21, 20)
    assert scan(tmp_path / "data", label_key="group")[0].label_names == ("g0", "g1", "g2")
    with pytest.raises(UserError, match="says what is held out"):
        scan(tmp_path / "data", heldout_fraction=0.1)


def test_a_kept_scan_is_used_again_until_data_or_options_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_salted_folder(tmp_path / "data", good=5)
    step = DataOptions(data=str(folder), max_bad_fraction=1.0)
    first = manifest_for(step, tmp_path / "kept", Silent())
    assert {row["path"] for row in read_dropped(tmp_path / "kept")} == set(unusable())
    with monkeypatch.context() as patch:
        patch.setattr("pixart_core.data.scan.list_images", lambda _: pytest.fail("scanned again"))
        assert manifest_for(step, tmp_path / "kept", Silent()) == first
    limited = step.model_copy(update={"limit": 2})
    assert len(manifest_for(limited, tmp_path / "kept", Silent()).records) == 2
    (folder / "new.png").write_bytes(encode(noise()))
    assert len(manifest_for(step, tmp_path / "kept", Silent()).records) == 6


def test_a_kept_scan_of_a_pattern_sees_new_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", samples("a"))
    step = DataOptions(data=str(tmp_path / "*.tar"))
    assert len(manifest_for(step, tmp_path / "kept", Silent()).records) == 1
    write_tar(tmp_path / "1.tar", samples("a", "b"))
    assert len(manifest_for(step, tmp_path / "kept", Silent()).records) == 3


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("missing", {}, "no such folder or file"),
        ("missing-*.tar", {}, "matches no file"),
        ("empty", {}, "holds no images"),
        ("empty/notes.md", {}, "not a folder and no uncompressed .tar"),
        ("bad", {}, "none of 1 images can be used: not an image"),
        ("good", {"label_key": "grop"}, "no image has label_key 'grop'.*group, number"),
        ("good", {"heldout_fraction": 0.1, "heldout_keys": ("stile",)}, "no image has 'stile'.*group"),
        ("good", {"heldout_keys": ("group",)}, "give heldout_fraction"),
        ("unfinished", {}, "holds manifest|unfinished|cannot be read"),
    ],
)
def test_mistakes_get_one_clear_line(
    tmp_path: Path, data: str, options: dict[str, object], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").write_text("no images here")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_text("not a picture")
    write_tar(tmp_path / "good" / "0.tar", samples("a"))
    (tmp_path / "unfinished").mkdir()
    Card("manifest", {}, {}).write(tmp_path / "unfinished")
    with pytest.raises(UserError, match=message) as caught:
        scan(tmp_path / data, **options)
    assert "\n" not in str(caught.value)


def test_braces_expand_as_in_a_shell() -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{a,b}{1..2}") == ["a1", "a2", "b1", "b2"]
    assert expand_braces("plain") == ["plain"]


@pytest.mark.skipif(not EMOJI.is_dir(), reason="the emoji data are not here")
def test_real_tars_are_read_whole() -> None:
    manifest, dropped = scan(
        EMOJI, heldout_fraction=0.1, heldout_keys=("concept", "style"), label_key="group"
    )
    assert (len(manifest.records), dropped) == (8185, [])
    assert all(r.caption and r.label is not None for r in manifest.records)
    assert len({r.id for r in manifest.records}) == 8185
    assert 0.08 < len(manifest.split("heldout")) / 8185 < 0.12
    image = ImageReader(manifest.folder).read(manifest.records[8000])
    assert image.size == (128, 128)
