"""Noun phrases and parts of speech of prompts: spaCy, as the benchmark has it, or TextBlob and rules.

Scores of the two readers are scores of two protocols: their questions differ.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, Literal

from pixart_core.data.taggers import installed
from pixart_core.errors import UserError

Part = Literal["NOUN", "PROPN", "ADJ", "OTHER"]
# Phrases that name a place, not an object; the benchmark asks no question about them.
PLACES = ("top", "the side", "the left", "the right")
_INSTALL = "noun phrases need spaCy with an English pipeline, or TextBlob: pip install 'pixart[compbench]'"
# One letter a word, so that a phrase is a regular expression.
_LETTERS = {"DT": "D", "PDT": "D", "PRP$": "D", "CD": "C", "PRP": "P", "POS": "s", "CC": "a", ",": ","}
_PHRASE = re.compile(r"D*(?:R?J|C|N|s|(?<=J),(?=R?J)|(?<=J)a(?=J))*N|P")
# "a red orange and": an adjective that ends what a determiner begins is a noun.
_NO_NOUN = re.compile(r"(D(?:R?J|,(?=R?J))*)J(?!R?J|N|s|C|,R?J|aJ)")
_PARTS: dict[str, Part] = {"N": "NOUN", "J": "ADJ"}
_TO_BE = frozenset(("is", "are", "was", "were", "be", "been"))
_AUXILIARIES = _TO_BE | {"has", "have", "had", "does", "do", "did", "can", "will"}


@dataclasses.dataclass(frozen=True)
class Sentence:
    """What the scorers need of a prompt.

    Attributes:
        noun_phrases: without those that name a place, in order.
        words: with punctuation marks as words of their own, and the part of speech of each.
    """

    noun_phrases: tuple[str, ...]
    words: tuple[tuple[str, Part], ...]

    @property
    def nouns(self) -> tuple[str, ...]:
        """Common nouns, as they stand."""
        return tuple(word for word, part in self.words if part == "NOUN")

    @property
    def without_adjectives(self) -> str:
        return " ".join(word for word, part in self.words if part != "ADJ")


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads prompts.

    Attributes:
        name: with versions.
        suffix: what it adds to a protocol's id: nothing if it is the official one.
    """

    name: str
    suffix: str
    read: Callable[[str], Sentence]


def load_reader(kind: Literal["auto", "spacy", "textblob"], spacy_model: str) -> Reader:
    """Load the reader `kind`; "auto" is spaCy where it and `spacy_model` are installed, else TextBlob.

    Raises:
        UserError: neither is installed, or `spacy_model` is not, and was asked for.
    """
    if kind == "spacy" or (kind == "auto" and installed("spacy") and installed(spacy_model)):
        return _spacy(spacy_model)
    return _textblob()


def _spacy(model: str) -> Reader:
    try:
        import spacy
    except ImportError as error:
        raise UserError(f"compbench.chunker: spaCy is not installed; {_INSTALL}") from error
    try:
        pipeline: Any = spacy.load(model)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"compbench.spacy_model: {model} is no spaCy pipeline here: python -m spacy download {model}"
        ) from error
    parts: dict[str, Part] = {"NOUN": "NOUN", "PROPN": "PROPN", "ADJ": "ADJ"}

    def read(text: str) -> Sentence:
        document = pipeline(text)
        phrases = (str(chunk.text) for chunk in document.noun_chunks)
        return Sentence(
            tuple(phrase for phrase in phrases if phrase not in PLACES),
            tuple((token.text, parts.get(token.pos_, "OTHER")) for token in document),
        )

    meta = pipeline.meta
    name = f"{meta['lang']}_{meta['name']}"
    suffix = "" if name == "en_core_web_sm" else f"-{name}"
    return Reader(f"spacy {spacy.__version__} {name} {meta['version']}", suffix, read)


def _textblob() -> Reader:
    try:
        from textblob.en.taggers import PatternTagger
    except ImportError as error:
        raise UserError(_INSTALL) from error
    tag = PatternTagger().tag

    def read(text: str) -> Sentence:
        tagged = [(str(word), str(kind)) for word, kind in tag(text)]
        return sentence_of(text, tagged)

    return Reader(f"textblob {version('textblob')} PatternTagger, rules 1", "-textblob", read)


def sentence_of(text: str, tagged: Sequence[tuple[str, str]]) -> Sentence:
    """Noun phrases by rules over Penn Treebank tags: determiner, modifiers, noun; or a pronoun.

    Args:
        tagged: (word, tag) in the order of `text`.
    """
    letters = _letters(tagged)
    places = _places(text, [word for word, _ in tagged])
    phrases = []
    for match in _PHRASE.finditer(letters):
        phrase = text[places[match.start()][0] : places[match.end() - 1][1]]
        if phrase.lower() not in PLACES:
            phrases.append(phrase)
    words = tuple(
        (word, "PROPN" if kind.startswith("NNP") else _PARTS.get(letter, "OTHER"))
        for (word, kind), letter in zip(tagged, letters, strict=True)
    )
    return Sentence(tuple(phrases), words)


def _letters(tagged: Sequence[tuple[str, str]]) -> str:
    """D determiner, C number, J modifier, N noun, R adverb, P pronoun, s possessive, a "and", v the rest."""
    letters = ""
    for place, (word, kind) in enumerate(tagged):
        following = tagged[place + 1][1] if place + 1 < len(tagged) else ""
        previous = tagged[place - 1][0].lower() if place else ""
        letters += _letter(word, kind, letters[-1:], previous, following)
    return _NO_NOUN.sub(r"\1N", letters)


def _letter(word: str, kind: str, before: str, previous: str, following: str) -> str:
    if before == "s" and word == "s":
        return "s"
    if kind.startswith("NN"):
        return "v" if previous in _TO_BE and word.endswith("ing") else "N"
    if kind.startswith("JJ"):
        return "J"
    if kind.startswith("RB"):
        return "R"
    # The tagger takes many a noun for a verb; none is one after an adjective, or before another.
    if kind in ("VB", "VBP", "VBD", "VBZ") and before in ("D", "J") and word.lower() not in _AUXILIARIES:
        return "N"
    if kind in ("VB", "VBP") and before == "N" and following in ("VBD", "VBZ"):
        return "N"
    if kind in ("VBG", "VBN") and before in ("D", "J", "R", ",", "C") and following.startswith(("NN", "JJ")):
        return "J"
    return _LETTERS.get(kind, "v")


def _places(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Start and end of each word in `text`; a word that is not found there is where the last one ended."""
    places, end = [], 0
    for word in words:
        start = text.find(word, end)
        start = end if start < 0 else start
        end = min(start + len(word), len(text))
        places.append((start, end))
    return places
