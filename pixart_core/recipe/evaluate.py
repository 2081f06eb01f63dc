"""Options of `pixart evaluate`: which benchmarks, on what, and the weights that they need."""

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from pixart_core.recipe.base import Source, Strict
from pixart_core.recipe.compbench import CompBenchOptions

Bench = Literal["shapes", "frechet", "fid", "cmmd", "fd-dinov2", "clip", "compbench"]
FidProtocol = Literal["coco256-cleanfid", "pytorch-fid", "torch-fidelity"]


class EvaluateStep(Strict):
    """Score sample sets and write the report."""

    unrecorded: ClassVar[frozenset[str]] = frozenset({"cache", "batch_size", "device", "whole"})

    command: Literal["evaluate"] = "evaluate"
    bench: tuple[Bench, ...] = ("shapes",)
    samples: dict[str, Source] = Field(min_length=1, description="Name of each sample set and its folder.")
    limit: PositiveInt | None = Field(
        None, description="Score the first so many samples of each set; marks the results partial."
    )
    whole: dict[str, PositiveInt] = Field(
        default_factory=dict,
        description="How many samples a set would hold without the limit that it was drawn with; marks its "
        "results partial.",
    )
    reference: Source | None = Field(
        None,
        description="Real images (folder, tars, parquet, hf:ID, manifest), or statistics (.npz with mu and "
        "sigma), that frechet, fid, cmmd and fd-dinov2 compare with.",
    )
    reference_limit: PositiveInt | None = Field(
        None, description="Use the first so many reference images; default: all."
    )
    reference_protocol: FidProtocol | None = Field(
        None, description="How a .npz of others was made, which does not tell; default: pytorch-fid."
    )
    save_statistics: bool = Field(
        False, description="Keep the reference's statistics beside the report, for later runs."
    )
    features: Source = Field(
        "pixels-8x8",
        description="Features of frechet: pixels-8x8, or hub id or path of a transformers vision model.",
    )
    fid_protocol: FidProtocol = Field(
        "coco256-cleanfid", description="Resizing and scaling before Inception: numbers differ by tool."
    )
    inception: Source | None = Field(
        None,
        description="With bench fid: pt_inception-2015-12-05-6726825d.pth (the TensorFlow port, 91 MB): "
        "path, address (https://...) or hub id; default: what pytorch-fid or torch-fidelity have downloaded.",
    )
    cmmd_model: Source = Field(
        "openai/clip-vit-large-patch14-336", description="CLIP of cmmd: hub id or folder."
    )
    dinov2_model: Source = Field(
        "facebook/dinov2-large", description="DINOv2 of fd-dinov2: hub id or folder."
    )
    clip_model: Source = Field(
        "openai/clip-vit-base-patch32", description="CLIP of the CLIP score: hub id or folder."
    )
    compbench: CompBenchOptions = CompBenchOptions.model_validate({})
    runs: dict[str, Source] = Field(
        default_factory=dict, description="Train steps whose curves the report shows."
    )
    pipeline: Source | None = Field(None, description="The pipeline folder that the report names.")
    batch_size: PositiveInt = Field(32, description="Images at a time in Inception, CLIP and DINOv2.")
    device: str | None = Field(None, description="cpu, cuda, cuda:1, ...; default: the best there is.")
    cache: str | None = Field(
        None, description="Folder of features by image; default: .evaluation beside the report's folder."
    )
    bootstrap: PositiveInt = 1000
    seed: NonNegativeInt = 0
