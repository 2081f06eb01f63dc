"""Options of T2I-CompBench: which prompts, and the weights that its scorers need."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from pixart_core.recipe.base import Strict

Category = Literal["color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex"]
CATEGORIES: tuple[Category, ...] = (
    "color",
    "shape",
    "texture",
    "spatial",
    "3d_spatial",
    "numeracy",
    "non_spatial",
    "complex",
)


def prompt_categories(folder: Path) -> list[Category]:
    """The categories whose `{category}_val.txt` lie in `folder`; none if it is something else."""
    return [category for category in CATEGORIES if (folder / f"{category}_val.txt").is_file()]


class CompBenchOptions(Strict):
    """What `bench: compbench` scores, and with what. Paths and hub ids; nothing is downloaded unasked."""

    unrecorded: ClassVar[frozenset[str]] = frozenset({"official_layout"})
    inputs: ClassVar[frozenset[str]] = frozenset(
        {"prompts", "blip", "blip_tokenizer", "clip", "detections", "detector_model", "depth"}
    )

    prompts: str = Field(
        "NinaKarine/t2i-compbench",
        description="Folder of {category}_val.txt files, or the id of the data set on the hub.",
    )
    categories: tuple[Category, ...] = Field(CATEGORIES, min_length=1)
    images_per_prompt: PositiveInt = Field(
        10, description="Of a complete run; fewer mark the result partial."
    )
    noun_phrases: PositiveInt = Field(
        8, description="Questions a prompt: 8 officially since December 2023, 2 before (another protocol)."
    )
    chunker: Literal["auto", "spacy", "textblob"] = Field(
        "auto",
        description="What finds noun phrases: spacy is official; auto takes it where it is installed, else "
        "textblob with rules of ours (another protocol).",
    )
    spacy_model: str = "en_core_web_sm"
    blip: str | None = Field(
        None,
        description="BLIP-VQA: the official model_base_vqa_capfilt_large.pth (480 px, comparable) by "
        "path or address (https://...), a transformers folder, or a hub id such as "
        "Salesforce/blip-vqa-capfilt-large (384 px: another id). Default: the official file, where BLIP's "
        "own code has downloaded it.",
    )
    blip_tokenizer: str = Field(
        "google-bert/bert-base-uncased", description="Vocabulary that goes with an official .pth."
    )
    clip: str = Field("openai/clip-vit-base-patch32", description="CLIP of the non-spatial category.")
    detector: Literal["unidet-json", "owlv2", "grounding-dino"] = Field(
        "unidet-json",
        description="Boxes for the spatial and numeracy rules: unidet-json reads `detections` (comparable), "
        "the others run here and are another protocol.",
    )
    detections: str | None = Field(
        None, description="With unidet-json: JSON Lines that the official detector dumped."
    )
    detector_model: str | None = Field(
        None,
        description="Default: google/owlv2-base-patch16-ensemble or IDEA-Research/grounding-dino-tiny.",
    )
    detector_threshold: float = Field(0.3, ge=0.0, le=1.0, description="Boxes below it are not there.")
    depth: str = Field(
        "Intel/dpt-hybrid-midas", description="Depth of 3d_spatial: a DPT model, or a folder of depth PNGs."
    )
    official_layout: str | None = Field(
        None, description="Also write the images there as the benchmark's own code lays them out."
    )
