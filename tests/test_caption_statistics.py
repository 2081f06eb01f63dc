"""`pixart caption --stats`: the same counts wherever captions lie, however many processes count them."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caption_files import (
    CAPTIONS,
    COUNTED,
    counted,
    statistics,
    write,
    write_captions,
    write_manifest_folder,
    write_txt,
)

from pixart_cli import app
from pixart_core.artifacts.card import Card
from pixart_core.data import caption_count, count_process
from pixart_core.data.caption_statistics import run_caption_statistics
from pixart_core.data.noun_table import statistics_columns
from pixart_core.data.nouns import CaptionCounts
from pixart_core.data.taggers import load_tagger
from pixart_core.data.token_lengths import load_token_lengths
from pixart_core.errors import PixartError, UserError
from pixart_core.progress import Silent
from pixart_core.recipe.caption_statistics import CaptionStatisticsStep

pytest.importorskip("textblob")


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
