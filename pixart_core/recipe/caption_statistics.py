"""Options of `pixart caption --stats`."""

from typing import Literal

from pydantic import Field, PositiveInt

from pixart_core.recipe.base import Source, Strict
from pixart_core.recipe.features import ExtractFeaturesStep


class CaptionStatisticsStep(Strict):
    """Count the nouns and tokens of captions that are there already (paper Table 1)."""

    command: Literal["caption --stats"] = "caption --stats"
    data: Source = Field(
        description="Captions of `pixart caption`, data with captions of its own, or a .txt, .jsonl, .csv, "
        ".tsv or .parquet file."
    )
    before: Source | None = Field(
        None, description="Captions to compare with; default: the data's own, where `data` was recaptioned."
    )
    column: str | None = Field(
        None, description="Column of a table or field of the samples' JSON; default: caption, text, ..."
    )
    before_column: str | None = Field(None, description="The same for `before`.")
    limit: PositiveInt | None = Field(
        None, description="Count a sample of this many, chosen by a hash of the ids; default: all."
    )
    tagger: Literal["auto", "textblob", "spacy"] = Field(
        "auto", description="What tells nouns; auto: TextBlob if it is installed, else spaCy."
    )
    spacy_model: str = Field("en_core_web_sm", description="Name or folder of a spaCy pipeline.")
    tokenizer: Source | None = Field(
        ExtractFeaturesStep.model_fields["text_encoder"].default,
        description="Hub id or folder of a tokenizer; null: count no tokens.",
    )
    max_tokens: PositiveInt = Field(120, description="Longer captions lose their end in training.")
    # How many processes count decides nothing but the time: it stays out of the card.
    num_proc: PositiveInt | None = Field(None, exclude=True, description="Processes; default: one a core.")
