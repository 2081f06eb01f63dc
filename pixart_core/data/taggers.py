"""What tells the nouns of a text: TextBlob's lexicon tagger or a spaCy pipeline, both without network."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

from pixart_core.errors import UserError

Kind = Literal["auto", "textblob", "spacy"]
NOUN_TAGS = frozenset(("NN", "NNS", "NNP", "NNPS"))  # Penn Treebank: common and proper, singular and plural
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
_INSTALL = "noun statistics need TextBlob: pip install 'pixart[nouns]'"


@dataclasses.dataclass(frozen=True)
class Tagger:
    """A part-of-speech tagger.

    Attributes:
        name: with its version, as results quote it: counts of different taggers cannot be compared.
        nouns: the nouns of each text, lower-case, without marks around them, repeated as often as they occur.
    """

    name: str
    nouns: Callable[[Sequence[str]], Iterator[list[str]]]


def load_tagger(kind: Kind = "auto", spacy_model: str = "en_core_web_sm") -> Tagger:
    """Load a tagger; "auto" is TextBlob's, or spaCy's where only that is installed.

    Raises:
        UserError: it is not installed, or `spacy_model` cannot be loaded.
    """
    if kind == "textblob" or (kind == "auto" and installed("textblob")):
        return _textblob()
    if kind == "spacy" or installed("spacy"):
        return _spacy(spacy_model)
    raise UserError(_INSTALL)


def installed(package: str) -> bool:
    """Whether `package` could be imported."""
    try:
        return find_spec(package) is not None
    except ValueError:  # an entry of sys.modules without a spec
        return False


def _textblob() -> Tagger:
    """TextBlob's own lexicon tagger: its default one would download NLTK corpora."""
    try:
        from textblob.en.taggers import PatternTagger
    except ImportError as error:
        raise UserError(_INSTALL) from error
    tag = PatternTagger().tag

    def nouns(texts: Sequence[str]) -> Iterator[list[str]]:
        for text in texts:
            yield _clean(word for word, kind in tag(text) if kind in NOUN_TAGS)

    return Tagger(f"textblob {version('textblob')} PatternTagger", nouns)


def _spacy(model: str) -> Tagger:
    try:
        import spacy
    except ImportError as error:
        raise UserError("tagger: spaCy is not installed: pip install spacy, or tagger=textblob") from error
    try:
        pipeline: Any = spacy.load(model, exclude=["parser", "ner", "lemmatizer", "senter", "textcat"])
    except (OSError, ValueError, ImportError) as error:
        there = ", ".join(spacy.util.get_installed_models()) or "none"
        raise UserError(
            f"spacy_model: {model} is no spaCy pipeline here (installed: {there}): "
            f"python -m spacy download {model}, or tagger=textblob"
        ) from error
    if not {"tagger", "morphologizer"} & set(pipeline.pipe_names):
        parts = ", ".join(pipeline.pipe_names) or "nothing"
        raise UserError(f"spacy_model: {model} tags no parts of speech (it holds: {parts})")

    pipeline.max_length = 10**9  # the limit spares the parser, which is left out

    def is_noun(token: Any) -> bool:
        return token.tag_ in NOUN_TAGS or token.pos_ in ("NOUN", "PROPN")

    def nouns(texts: Sequence[str]) -> Iterator[list[str]]:
        for document in pipeline.pipe(texts):
            yield _clean(token.text for token in document if is_noun(token))

    name = f"{pipeline.meta['lang']}_{pipeline.meta['name']} {pipeline.meta['version']}"
    return Tagger(f"spacy {spacy.__version__} {name}", nouns)


def _clean(words: Iterable[str]) -> list[str]:
    bare = (_EDGES.sub("", word).lower() for word in words)
    return [noun for noun in bare if noun]
