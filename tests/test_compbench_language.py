"""Noun phrases and nouns of prompts."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from pixart_core.errors import UserError
from pixart_core.evaluation.compbench.language import Reader, load_reader
from pixart_core.evaluation.compbench.prompts import read_prompts

OFFICIAL = Path(__file__).parents[2] / "shared/data/compbench"

# What a person, and spaCy's rule (no prepositions, no conjunctions between phrases), cuts them into.
PHRASES = {
    "a white horse and a green tree": ["a white horse", "a green tree"],
    "a red orange and a blue orange": ["a red orange", "a blue orange"],
    "a brown bear and a pink sink": ["a brown bear", "a pink sink"],
    "A black and white dog sits on a red sofa.": ["A black and white dog", "a red sofa"],
    "a square shower curtain and two oval mirrors": ["a square shower curtain", "two oval mirrors"],
    "wooden chairs and a glass table": ["wooden chairs", "a glass table"],
    "The soft, warm light shone on the freshly painted wall.": [
        "The soft, warm light",
        "the freshly painted wall",
    ],
    "The round clock was on top of the old shelf.": ["The round clock", "the old shelf"],
    "a cat on the left of a key": ["a cat", "a key"],
    "A man is reading a book and thinking of it.": ["A man", "a book", "it"],
    "the child's small hands": ["the child's small hands"],
    "": [],
    "...": [],
}


@pytest.fixture(scope="module")
def textblob() -> Reader:
    return load_reader("textblob", "en_core_web_sm")


@pytest.mark.parametrize(("prompt", "phrases"), PHRASES.items(), ids=PHRASES)
def test_noun_phrases_are_what_a_reader_would_cut(textblob: Reader, prompt: str, phrases: list[str]) -> None:
    assert list(textblob.read(prompt).noun_phrases) == phrases


def test_phrases_are_pieces_of_the_prompt_as_it_stands(textblob: Reader) -> None:
    prompt = "The OLD  house's   blue door, and 3 (three) cats"
    phrases = textblob.read(prompt).noun_phrases
    assert phrases
    assert all(phrase in prompt for phrase in phrases)


def test_adjectives_are_dropped_and_nothing_else(textblob: Reader) -> None:
    read = textblob.read("The red hat was on a wooden table.")
    assert read.without_adjectives == "The hat was on a table ."
    assert read.nouns == ("hat", "table")


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official prompts are not here")
@pytest.mark.parametrize("category", ["spatial", "3d_spatial"])
def test_first_and_last_noun_of_every_spatial_prompt_are_its_objects(textblob: Reader, category: str) -> None:
    """All of them read "a OBJECT ... a OBJECT"."""
    for prompt in read_prompts(str(OFFICIAL), [category])[category]:
        words, nouns = prompt.text.split(), textblob.read(prompt.text).nouns
        assert (nouns[0], nouns[-1]) == (words[1], words[-1]), prompt.text


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official prompts are not here")
@pytest.mark.parametrize("category", ["color", "shape", "texture"])
def test_attribute_prompts_have_at_least_two_phrases(textblob: Reader, category: str) -> None:
    prompts = read_prompts(str(OFFICIAL), [category])[category]
    counts = [len(textblob.read(prompt.text).noun_phrases) for prompt in prompts]
    assert sum(count >= 2 for count in counts) >= 299


def fake_spacy(pipeline: str) -> ModuleType:
    """spaCy's interface around one prompt: a document of words that knows its noun chunks."""

    class Document(list):  # type: ignore[type-arg]
        noun_chunks = tuple(SimpleNamespace(text=text) for text in ("The hat", "top", "the side", "a table"))

    words = {"The": "DET", "red": "ADJ", "hat": "NOUN", "on": "ADP", "Mars": "PROPN"}

    class Pipeline:
        meta = {"lang": "en", "name": pipeline.removeprefix("en_"), "version": "3.8.0"}  # noqa: RUF012

        def __call__(self, text: str) -> Document:
            return Document(SimpleNamespace(text=word, pos_=words[word]) for word in text.split())

    def load(name: str) -> Pipeline:
        if name != pipeline:
            raise OSError(f"[E050] Can't find model '{name}'")
        return Pipeline()

    module = ModuleType("spacy")
    module.__dict__.update(load=load, __version__="3.8.2", __spec__=object())
    return module


def test_spacy_is_the_official_reader_and_leaves_places_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", fake_spacy("en_core_web_sm"))
    monkeypatch.setitem(sys.modules, "en_core_web_sm", fake_spacy("en_core_web_sm"))
    reader = load_reader("auto", "en_core_web_sm")
    assert (reader.name, reader.suffix) == ("spacy 3.8.2 en_core_web_sm 3.8.0", "")
    read = reader.read("The red hat on Mars")
    assert read.noun_phrases == ("The hat", "a table")
    assert read.nouns == ("hat",)
    assert read.without_adjectives == "The hat on Mars"


def test_another_reader_is_another_protocol(monkeypatch: pytest.MonkeyPatch, textblob: Reader) -> None:
    monkeypatch.setitem(sys.modules, "spacy", fake_spacy("en_core_web_lg"))
    assert load_reader("spacy", "en_core_web_lg").suffix == "-en_core_web_lg"
    # Without the official pipeline, auto takes what needs no download.
    assert load_reader("auto", "en_core_web_sm").suffix == textblob.suffix == "-textblob"
    with pytest.raises(UserError, match="spacy download en_core_web_sm"):
        load_reader("spacy", "en_core_web_sm")


def test_without_a_reader_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("spacy", "textblob", "textblob.en", "textblob.en.taggers"):
        monkeypatch.setitem(sys.modules, name, None)
    for kind in ("auto", "spacy", "textblob"):
        with pytest.raises(UserError, match=r"pip install 'pixart\[compbench\]'"):
            load_reader(kind, "en_core_web_sm")  # type: ignore[arg-type]
