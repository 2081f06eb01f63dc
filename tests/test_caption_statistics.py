"""`pixart caption --stats`: the same counts wherever captions lie, however many processes count them."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixart_cli import app
from pixart_core.artifacts.captions import CaptionRow, row_line
from pixart_core.artifacts.card import Card
from pixart_core.artifacts.manifest import ImageRecord, image_id, write_manifest
from pixart_core.data import caption_count, caption_sources, count_process
from pixart_core.data.caption_sources import open_captions, sample
from pixart_core.data.caption_statistics import run_caption_statistics
from pixart_core.data.noun_table import statistics_columns
from pixart_core.data.nouns import CaptionCounts
from pixart_core.data.taggers import load_tagger
from pixart_core.data.token_lengths import load_token_lengths
from pixart_core.errors import PixartError, UserError
from pixart_core.progress import Silent
from pixart_core.recipe.caption_statistics import CaptionStatisticsStep

pytest.importorskip("textblob")

# 12 captions, 36 nouns: dog 12, cat 11, table 11, house 1, london 1.
CAPTIONS = ["A dog and a cat on the table."] * 11 + ["The dog sees a house in London!"]
COUNTED = {"captions": 12, "total_nouns": 36, "distinct_nouns": 5, "valid_distinct_nouns": 3}


def statistics(data: Path | str, **options: Any) -> dict[str, Any]:
    step = CaptionStatisticsStep.model_validate(
        {"data": str(data), "tokenizer": None, "num_proc": 1} | options
    )
    return run_caption_statistics(step, None, Silent())


def counted(part: dict[str, Any]) -> dict[str, Any]:
    return {key: part[key] for key in COUNTED}


def write_folder(folder: Path) -> str:
    """Images that nobody could decode: their captions are all that is read."""
    (folder / "below").mkdir(parents=True)
    for number, caption in enumerate(CAPTIONS):
        stem = folder / ("below" if number % 2 else "") / f"{number:02}"
        stem.with_suffix(".png").write_bytes(b"no image")
        if number < 6:
            stem.with_suffix(".txt").write_text(f"{caption}\n")
        else:
            stem.with_suffix(".json").write_text(json.dumps({"caption": caption, "note": f"note {number}"}))
    (folder / "bare.png").write_bytes(b"no image")
    return str(folder)


def write_tar(folder: Path) -> str:
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as archive:
        for number, caption in enumerate(CAPTIONS):
            for name, data in ((f"{number}.jpg", b"no image"), (f"{number}.txt", caption.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return str(folder / "*.tar")


def write_manifest_folder(folder: Path) -> str:
    records = [
        ImageRecord(image_id(str(n)), f"{n}.png", None, 8, 8, text, None, "train", {"alt": "a red fox"})
        for n, text in enumerate([*CAPTIONS, None])
    ]
    folder.mkdir()
    write_manifest(folder, records, [], Card("manifest", {}, {}))
    return str(folder)


def write_captions(folder: Path, captions: list[str] = CAPTIONS) -> str:
    folder.mkdir()
    rows = [
        {"id": image_id(str(number)), "caption": caption, "flags": []}
        for number, caption in enumerate([*captions, ""])
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Card("captions", {}, {}).write(folder)
    return str(folder)


def write_hub(folder: Path) -> str:
    import datasets

    datasets.Dataset.from_dict({"text": CAPTIONS, "n": list(range(12))}).save_to_disk(folder)
    return f"hf:{folder}"


def write_txt(folder: Path) -> str:
    folder.mkdir()
    (folder / "a.txt").write_bytes(("\ufeff" + "\r\n".join(CAPTIONS[:5]) + "\n\n").encode())
    (folder / "b.txt").write_text("\n".join(CAPTIONS[5:]))
    return str(folder / "{a,b}.txt")


def write_jsonl(folder: Path) -> str:
    folder.mkdir()
    rows = [{"url": "x"}, *({"id": n, "prompt": caption} for n, caption in enumerate(CAPTIONS))]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": None}]))
    return str(folder / "a.jsonl")


def write_csv(folder: Path, suffix: str = ".csv", delimiter: str = ",") -> str:
    import csv

    folder.mkdir()
    with (folder / f"a{suffix}").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["id", "caption"], *([n, f"{text}\n"] for n, text in enumerate(CAPTIONS)), [99]])
    return str(folder / f"a{suffix}")


def write_parquet(folder: Path) -> str:
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    columns = {"captions": [[caption, "another fox"] for caption in CAPTIONS] + [[]], "image": [b"no"] * 13}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "a.parquet", row_group_size=5)
    return str(folder / "a.parquet")


SOURCES: dict[str, Callable[[Path], str]] = {
    "folder": write_folder,
    "tar": write_tar,
    "manifest": write_manifest_folder,
    "captions": write_captions,
    "hub": write_hub,
    "txt": write_txt,
    "jsonl": write_jsonl,
    "csv": write_csv,
    "tsv": lambda folder: write_csv(folder, ".tsv", "\t"),
    "parquet": write_parquet,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_counts_are_the_same_wherever_captions_lie(tmp_path: Path, kind: str) -> None:
    result = statistics(SOURCES[kind](tmp_path / "data"))
    assert counted(result["captions"]) == COUNTED
    assert result["captions"]["valid_ratio"] == pytest.approx(3 / 5)
    assert result["captions"]["nouns_per_image"] == pytest.approx(36 / 12)
    blank = {"tar": 0, "hub": 0, "txt": 0, "jsonl": 2}.get(kind, 1)
    assert result["captions"]["without_caption"] == blank
    assert result["before"] is None
    assert result["tagger"] == load_tagger("textblob").name


def test_recaptioned_data_are_compared_with_their_own_captions(tmp_path: Path) -> None:
    folder = tmp_path / "captions"
    write_captions(folder, ["A red fox."] * 12)
    write_manifest_folder(folder / "manifest")
    result = statistics(folder)
    assert counted(result["before"]) == COUNTED
    assert (result["captions"]["captions"], result["captions"]["total_nouns"]) == (12, 12)
    other = statistics(folder, before=write_txt(tmp_path / "other"))
    assert counted(other["before"]) == COUNTED
    assert [line.split(" | ")[0] for line in result["markdown"][2:4]] == [
        "| captions, before",
        "| captions, after",
    ]
    assert result["markdown"][2].endswith(" 12 | 3 / 5 = 60.0% | 36 | 3.0 | - | - |")


def test_excluded_captions_and_those_of_images_that_are_gone_do_not_count(tmp_path: Path) -> None:
    rows = [
        CaptionRow("a", "A dog."),
        CaptionRow("b", "A cat, a cat, a cat.", ("repeated",), excluded=True),
        CaptionRow("c", "", ("failed",), excluded=True, reason="the server refused it"),
        CaptionRow("gone", "A house."),
    ]
    (tmp_path / "captions.jsonl").write_text("".join(map(row_line, rows)))
    Card("captions", {}, {}, {"images": 3}).write(tmp_path)
    result = statistics(tmp_path)
    assert (result["captions"]["captions"], result["captions"]["total_nouns"]) == (1, 1)
    assert result["captions"]["left_out"] == 2
    assert any("2 left out, e.g. b: excluded (repeated)" in note for note in result["notes"])


def test_a_field_of_the_samples_is_a_caption_too(tmp_path: Path) -> None:
    manifest = write_manifest_folder(tmp_path / "manifest")
    result = statistics(manifest, before=manifest, before_column="alt")
    assert (result["before"]["captions"], result["before"]["total_nouns"]) == (13, 13)
    assert counted(result["captions"]) == COUNTED


def test_images_without_captions_before_are_said_and_not_compared(tmp_path: Path) -> None:
    folder = tmp_path / "captions"
    write_captions(folder)
    (folder / "manifest").mkdir()
    record = ImageRecord(image_id("0"), "0.png", None, 8, 8, None, None, "train")
    write_manifest(folder / "manifest", [record], [], Card("manifest", {}, {}))
    result = statistics(folder)
    assert result["before"] is None
    assert "the images had no captions before" in result["notes"]


def test_captions_that_cannot_be_read_are_counted_and_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "data")
    (tmp_path / "data" / "00.txt").write_bytes(b"\xff\xfe broken")
    part = statistics(tmp_path / "data")
    assert (part["captions"]["captions"], part["captions"]["left_out"]) == (11, 1)
    assert any("1 left out, e.g. " in note and "not UTF-8" in note for note in part["notes"])


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "options", "message"),
    [
        (
            "a.jsonl",
            '{"url": 1}\n',
            {},
            r"no column is called caption, .*\(there is: url\); give col",
        ),
        ("a.jsonl", '{"caption": "x"}\n', {"column": "alt"}, r"no column 'alt' \(there is: caption\)"),
        ("a.csv", "url,alt\nx,y\n", {"column": "caption"}, r"no column 'caption' \(there is: url, alt\)"),
        ("a.txt", "a dog\n", {"column": "alt"}, "holds a caption a line and no column 'alt'"),
        ("a.txt", "", {}, r"a\.txt: holds no captions"),
        ("a.jsonl", "", {}, "holds no captions"),
        ("a.csv", "", {}, "holds no captions"),
        ("a.csv", "caption\n", {}, "holds no captions"),
        ("a.txt", b"a dog\na c\xe4t\n", {}, r"a\.txt:2: not UTF-8"),
        ("a.jsonl", b'{"caption": "a c\xe4t"}\n', {}, r"a\.jsonl:1: not UTF-8"),
        ("a.csv", b"caption\na dog\na c\xe4t\n", {}, r"a\.csv:3: not UTF-8"),
        ("a.jsonl", '{"caption": "x"}\n{"capt', {}, r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '"a dog"\n', {}, r"a\.jsonl:1: not a JSON object"),
        ("a.jsonl", '{"caption": 3}\n', {}, r"row 1: column 'caption' holds int, not text"),
        ("a.parquet", b"PAR1 cut off", {}, "cannot be read as parquet"),
        ("a.docx", "x", {}, r"captions are read from \.txt, .*\.parquet, \.tar, folders and hf:ID"),
    ],
)
def test_mistakes_get_one_clear_line(
    tmp_path: Path, name: str, data: bytes | str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        statistics(write(tmp_path / name, data), **options)
    assert "\n" not in str(caught.value)


def test_a_column_that_never_comes_is_missed_early(tmp_path: Path) -> None:
    lines = '{"alt": "a dog"}\n' * 5000 + "no JSON"
    with pytest.raises(UserError, match="no column 'caption'"):
        statistics(write(tmp_path / "a.jsonl", lines), column="caption")


def test_folders_that_hold_something_else_are_named(tmp_path: Path) -> None:
    Card("features", {}, {}).write(tmp_path)
    with pytest.raises(UserError, match="holds features, expected captions"):
        statistics(tmp_path)
    write_captions(tmp_path / "captions")
    with pytest.raises(UserError, match="have no column 'alt'"):
        statistics(tmp_path / "captions", column="alt")
    (tmp_path / "captions" / "card.json").unlink()
    with pytest.raises(UserError, match=r"unfinished; run it again, or give one of its \.jsonl"):
        statistics(tmp_path / "captions")
    assert counted(statistics(tmp_path / "captions" / "captions.jsonl")["captions"]) == COUNTED
    with pytest.raises(UserError, match=r"given as .*/\*\.txt"):
        statistics(Path(write_txt(tmp_path / "texts")).parent)


def test_taggers_that_are_not_installed_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_txt(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(UserError, match="pip install spacy"):
        statistics(data, tagger="spacy")
    for module in ("textblob", "textblob.en.taggers"):
        monkeypatch.setitem(sys.modules, module, None)
    for kind in ("auto", "textblob"):
        with pytest.raises(UserError, match=r"pip install 'pixart\[nouns\]'"):
            statistics(data, tagger=kind)


def test_spacy_tags_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spacy = pytest.importorskip("spacy")
    from spacy.training import Example

    with pytest.raises(UserError, match="spacy_model: en_nowhere is no spaCy pipeline here"):
        load_tagger("spacy", "en_nowhere")
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match="tags no parts of speech"):
        load_tagger("spacy", str(tmp_path / "blank"))
    pipeline = spacy.blank("en")
    pipeline.add_pipe("tagger")
    known = [("A dog sleeps .", ["DT", "NN", "VBZ", "."]), ("The cats sleep .", ["DT", "NNS", "VBP", "."])]
    examples = [Example.from_dict(pipeline.make_doc(text), {"tags": tags}) for text, tags in known]
    optimizer = pipeline.initialize(lambda: examples)
    for _ in range(40):
        pipeline.update(examples, sgd=optimizer)
    pipeline.to_disk(tmp_path / "model")
    (tmp_path / "a.txt").write_text("A dog sleeps.\nThe cats sleep.\n")
    options = {"spacy_model": str(tmp_path / "model")}
    result = statistics(tmp_path / "a.txt", tagger="spacy", **options)
    assert result["tagger"] == f"spacy {spacy.__version__} en_pipeline 0.0.0"
    assert (result["captions"]["total_nouns"], result["captions"]["distinct_nouns"]) == (2, 2)
    monkeypatch.setitem(sys.modules, "textblob", None)
    assert statistics(tmp_path / "a.txt", **options)["tagger"] == result["tagger"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A fast tokenizer and one in plain Python."""
    from transformers import ByT5Tokenizer

    from pixart_core.encoders.tiny_t5 import build_tokenizer

    folder = tmp_path_factory.mktemp("tokenizers")
    build_tokenizer(CAPTIONS).save_pretrained(folder / "words")
    ByT5Tokenizer().save_pretrained(folder / "bytes")
    return {"words": folder / "words", "bytes": folder / "bytes"}


@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_tokens_are_counted_as_transformers_counts_them(
    tmp_path: Path, tokenizers: dict[str, Path], kind: str
) -> None:
    from transformers import AutoTokenizer

    rng = random.Random(0)
    words = [*" ".join(CAPTIONS).split(), "unknown", "großes", "\U0001f600"]
    captions = [" ".join(rng.choices(words, k=rng.randint(1, 200))) for _ in range(300)]
    oracle = AutoTokenizer.from_pretrained(tokenizers[kind])
    lengths = np.array([len(oracle(caption, truncation=False)["input_ids"]) for caption in captions])
    path = write(tmp_path / "a.txt", "\n".join(f"  {caption} " for caption in captions))
    result = statistics(path, tokenizer=str(tokenizers[kind]))
    assert (result["tokenizer"], result["max_tokens"]) == (kind, 120)
    tokens = result["captions"]["tokens"]
    assert tokens["mean"] == pytest.approx(lengths.mean())
    assert tokens["median"] == pytest.approx(np.quantile(lengths, 0.5))
    assert tokens["p95"] == pytest.approx(np.quantile(lengths, 0.95))
    assert tokens["max"] == lengths.max()
    assert tokens["truncated"] == (lengths > 120).sum() > 0
    assert tokens["truncated_share"] == pytest.approx((lengths > 120).mean())
    half = statistics(path, tokenizer=str(tokenizers[kind]), max_tokens=50)
    assert half["captions"]["tokens"]["truncated"] == (lengths > 50).sum()


def test_a_tokenizer_is_found_where_encoders_keep_it(tmp_path: Path, tokenizers: dict[str, Path]) -> None:
    shutil.copytree(tokenizers["words"], tmp_path / "pipeline" / "tokenizer")
    (tmp_path / "pipeline" / "text_encoder").mkdir()
    for place in ("pipeline", "pipeline/tokenizer", "pipeline/text_encoder"):
        tokens = load_token_lengths(str(tmp_path / place))
        assert tokens.of(["A dog", " a  dog\n", "", "\ud83d"]) == [3, 3, 1, 2]
    with pytest.raises(UserError, match=r"holds none \(tokenizer\.json"):
        load_token_lengths(str(tmp_path))


def test_without_a_tokenizer_nothing_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(source: str, part: str) -> dict[str, Any]:
        raise UserError(f"{source!r} cannot be had")

    monkeypatch.setattr("pixart_core.encoders.pretrained.locate", nowhere)
    data = write_txt(tmp_path / "data")
    step = CaptionStatisticsStep(data=data, num_proc=1)
    result = run_caption_statistics(step, None, Silent())
    assert (result["tokenizer"], result["captions"]["tokens"]) == (None, None)
    assert any("tokens are not counted: 'google/t5-v1_1-xxl' cannot be had" in n for n in result["notes"])
    assert counted(result["captions"]) == COUNTED
    with pytest.raises(UserError, match="tokenizer: 'google/t5-v1_1-xxl' cannot be had"):
        statistics(data, tokenizer="google/t5-v1_1-xxl")


def test_counts_of_parts_add_up() -> None:
    tagger = load_tagger("textblob")
    whole, parts = CaptionCounts.of(CAPTIONS, tagger, None), CaptionCounts()
    for start in (8, 0, 4):
        parts.add(CaptionCounts.of(CAPTIONS[start : start + 4], tagger, None))
    assert parts == whole
    assert whole.nouns == Counter(dog=12, cat=11, table=11, house=1, london=1)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few captions are enough to need processes, and more of them than one at a time."""
    monkeypatch.setattr(caption_count, "_CHUNK_CAPTIONS", 3)
    monkeypatch.setattr(caption_count, "_ALONE", 2)


@pytest.mark.usefixtures("small_chunks")
def test_any_number_of_processes_counts_the_same(tmp_path: Path, tokenizers: dict[str, Path]) -> None:
    rng = random.Random(0)
    words = ["dog", "cat", "House", "red", "London", "tables", "over", "(fox)", "naïve", "ΟΔΟΣ", "n't"]
    captions = [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(100)]
    data = write(tmp_path / "a.txt", "\n".join(captions))
    shuffled = write(tmp_path / "b.txt", "\n".join(sorted(captions)))
    results = [
        statistics(path, num_proc=number, tokenizer=str(tokenizers["words"]))["captions"] | {"label": None}
        for path, number in ((data, 1), (shuffled, 3))
    ]
    assert results[0] == results[1]
    assert results[0]["captions"] == 100
    assert results[0]["tokens"]["mean"] > 1


def die(texts: list[str]) -> CaptionCounts:
    os._exit(9)


@pytest.mark.usefixtures("small_chunks")
def test_a_process_that_dies_is_a_failure_not_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count_process, "count", die)
    data = write(tmp_path / "a.txt", "a dog\n" * 50)
    with pytest.raises(PixartError, match=r"died .*smaller num_proc"):
        statistics(data, num_proc=2)


@pytest.mark.usefixtures("small_chunks")
def test_a_mistake_far_into_the_file_ends_the_processes(tmp_path: Path) -> None:
    data = write(tmp_path / "a.txt", b"a dog\n" * 500 + b"a c\xe4t\n")
    with pytest.raises(UserError, match=r"a\.txt:501: not UTF-8"):
        statistics(data, num_proc=2)


def test_a_sample_is_the_captions_with_the_smallest_hashes_in_any_order(tmp_path: Path) -> None:
    rows = [{"id": f"{n:x}", "caption": f"caption {n}"} for n in range(200)]
    chosen = []
    for name in ("a", "b"):
        random.Random(name).shuffle(rows)
        lines = "".join(json.dumps(row) + "\n" for row in [*rows, {"id": "blank", "caption": " "}])
        source = open_captions(str(write(tmp_path / f"{name}.jsonl", lines)))
        chosen.append({row.id for row in sample(source, 50).read()})
    by_hash = sorted((f"{n:x}" for n in range(200)), key=caption_sources._hash)
    assert chosen[0] == chosen[1] == set(by_hash[:50])
    assert [row.id for row in sample(source, 1000).read()] == [row.id for row in source.read()]
    same = write(tmp_path / "same.jsonl", '{"id": 1, "caption": "a dog"}\n' * 30)
    assert statistics(same, limit=7)["captions"]["captions"] == 7


def test_unequal_numbers_come_with_an_offer_of_equal_ones(tmp_path: Path) -> None:
    few = write(tmp_path / "few.txt", "a dog\n" * 4)
    many = write_txt(tmp_path / "data")
    unequal = statistics(many, before=str(few))
    assert any("--limit 4 compares samples of one size" in note for note in unequal["notes"])
    equal = statistics(many, before=str(few), limit=4)
    assert equal["captions"]["captions"] == equal["before"]["captions"] == 4
    assert not any("differ" in note for note in equal["notes"])
    assert any("VN/DN depend on how many captions" in note for note in equal["notes"])


def pixart(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        app.main(["caption", "--stats", *arguments, "tokenizer=null"])
    return int(str(caught.value.code))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with recaptioned images, to run commands in on a terminal of 80 columns."""
    write_captions(tmp_path / "captions")
    write_manifest_folder(tmp_path / "captions" / "manifest")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def test_the_command_prints_a_table_of_80_columns_and_loads_no_captioner(here: Path) -> None:
    before = sorted(here.rglob("*"))
    program = """
import sys
from pixart_cli.app import main
try:
    main(["caption", "--stats", "--data", "captions", "tokenizer=null"])
finally:
    heavy = {"torch", "transformers", "datasets"} & set(sys.modules)
    assert not heavy, heavy
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=here)
    table, notes, markdown = shown.stdout.split("\n\n")
    assert max(map(len, table.splitlines())) <= 80
    assert ["Distinct", "nouns", "(DN)", "5", "5", "2461K", "646K", "124K", "582K"] in [
        line.split() for line in table.splitlines()
    ]
    assert notes.startswith("tagger: textblob")
    assert markdown.startswith("| Data | Captions | VN/DN |")
    assert sorted(here.rglob("*")) == before  # without --output nothing is written


def test_the_result_is_kept_where_it_is_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "captions", "--output", "out"]
    assert pixart(*options, "--json", "num_proc=2") == 0
    (line,) = capsys.readouterr().out.splitlines()
    kept = json.loads((here / "out" / "statistics.json").read_text())
    assert json.loads(line) == kept | {"output": "out"}
    assert (here / "out" / "statistics.md").read_text().splitlines() == kept["markdown"]
    assert Card.read(here / "out", "caption-statistics").details["captions"] == kept["captions"]
    content = {path: path.read_bytes() for path in (here / "out").iterdir()}
    assert pixart(*options, "num_proc=1") == 0
    assert {path: path.read_bytes() for path in (here / "out").iterdir()} == content
    assert not any(str(here).encode() in data for data in content.values())
    assert pixart(*options, "--limit", "3") == 2
    assert "holds a result of other options or inputs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "captions", "--prompt", "x", "--device", "cpu"], "leave --prompt, --device out"),
        (["--data", "captions", "colum=x"], "did you mean column?"),
        (["--data", "captions", "tagger=nltk"], "expected one of auto, textblob, spacy"),
        (["--data", "captions", "--output", "captions"], "holds captions made by pixart"),
        (["--data", "captions", "--before", "b.txt"], "b.txt: no such folder or file"),
    ],
)
def test_mistakes_on_the_command_line_exit_2(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert pixart(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


def test_rows_that_say_nothing_are_left_out_of_the_table(tmp_path: Path) -> None:
    headings, rows = statistics_columns(statistics(write_txt(tmp_path / "data")))
    assert headings == ["captions", "LAION", "LAION-LLaVA", "SAM-LLaVA", "Internal"]
    assert [label for label, _ in rows] == [
        "Captions", "Total nouns", "Distinct nouns (DN)", "Valid: > 10 (VN)", "VN / DN", "Nouns per image",
    ]  # fmt: skip
    assert dict(rows)["VN / DN"] == ["60.0%", "8.5%", "13.3%", "18.6%", "26.1%"]
