"""Open-vocabulary detectors of transformers, for the spatial rules without detectron2.

They look for every object of a category's prompts at once, so that an image is asked the same whatever its
prompt. Their scores are another protocol than UniDet's.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pixart_core.encoders.pretrained import loading, locate, refuse_missing, weight_hash
from pixart_core.evaluation.compbench.boxes import Box, frame_of

Kind = Literal["owlv2", "grounding-dino"]
DEFAULTS: dict[Kind, str] = {
    "owlv2": "google/owlv2-base-patch16-ensemble",
    "grounding-dino": "IDEA-Research/grounding-dino-tiny",
}
SIZES: dict[Kind, str] = {"owlv2": "620 MB", "grounding-dino": "690 MB"}
_LABELS_A_TIME = 32  # of Grounding DINO, whose text is 256 tokens at most

Find = Callable[[Image.Image, Sequence[str]], tuple[Float[Tensor, "boxes labels"], Float[Tensor, "boxes 4"]]]
"""(score of every label, center x, center y, width, height as shares of the image) of every candidate."""


@dataclasses.dataclass(frozen=True)
class Detector:
    """Finds objects of given names.

    Attributes:
        name: part of the protocol's id.
        weights: hash of the weights.
        threshold: candidates whose best label scores less are nothing.
    """

    name: str
    weights: str
    threshold: float
    find: Find

    def detect(self, image: Image.Image, labels: Sequence[str]) -> list[Box]:
        """Boxes in the image's frame, highest score first, each with its best label; none without labels."""
        if not labels:
            return []
        scores, places = self.find(image, labels)
        best, which = scores.float().cpu().max(dim=1)
        width, height = frame_of(*image.size)
        scale = torch.tensor([width, height, width, height])
        sides = _corners(places.float().cpu()) * scale
        order = torch.argsort(best, descending=True, stable=True)
        return [
            Box(labels[int(which[at])], round(best[at].item(), 6), _sides(sides[at]))
            for at in order.tolist()
            if best[at] >= self.threshold
        ]


def load_detector(kind: Kind, source: str | None, threshold: float, device: torch.device) -> Detector:
    """Load a detector from a hub id or folder (default: `DEFAULTS`).

    Raises:
        UserError: no such model, or one of another class.
    """
    place = source or DEFAULTS[kind]
    model, find = (_owlv2 if kind == "owlv2" else _grounding_dino)(place, device)
    short = Path(place).name if Path(place).is_dir() else place.rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", short)
    return Detector(f"{name}-t{threshold:g}", weight_hash(model), threshold, find)


def _owlv2(source: str, device: torch.device) -> tuple[Any, Find]:
    from transformers import CLIPTokenizer, Owlv2ForObjectDetection
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    place = locate(source, "owlv2")
    with loading(source, "OWLv2"):
        loaded: Any = Owlv2ForObjectDetection.from_pretrained(**place, output_loading_info=True)
        tokenizer: Any = CLIPTokenizer.from_pretrained(**place)
        images: Any = Owlv2ImageProcessorPil.from_pretrained(**place)
    refuse_missing(source, "OWLv2", list(loaded[1]["missing_keys"]))
    model = loaded[0].to(device).eval()
    length = model.config.text_config.max_position_embeddings

    @torch.inference_mode()
    def find(image: Image.Image, labels: Sequence[str]) -> tuple[Tensor, Tensor]:
        queries = [f"a photo of a {label}" for label in labels]
        tokens = tokenizer(
            queries, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(device)
        pixels = images(images=image.convert("RGB"), return_tensors="pt")["pixel_values"].to(device)
        output = model(pixel_values=pixels, **tokens)
        # The image was padded to a square at its right or bottom: shares of the square become the image's.
        square = max(image.size)
        shares = torch.tensor([square / image.width, square / image.height] * 2, device=device)
        return output.logits[0].sigmoid(), output.pred_boxes[0] * shares

    return model, find


def _grounding_dino(source: str, device: torch.device) -> tuple[Any, Find]:
    from transformers import AutoTokenizer, GroundingDinoForObjectDetection
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
        GroundingDinoImageProcessorPil,
    )

    place = locate(source, "grounding-dino")
    with loading(source, "Grounding DINO"):
        loaded: Any = GroundingDinoForObjectDetection.from_pretrained(**place, output_loading_info=True)
        tokenizer: Any = AutoTokenizer.from_pretrained(**place)
        images: Any = GroundingDinoImageProcessorPil.from_pretrained(**place)
    refuse_missing(source, "Grounding DINO", list(loaded[1]["missing_keys"]))
    model = loaded[0].to(device).eval()

    @torch.inference_mode()
    def find(image: Image.Image, labels: Sequence[str]) -> tuple[Tensor, Tensor]:
        prepared = images(images=image.convert("RGB"), return_tensors="pt").to(device)
        scores, places = [], []
        for start in range(0, len(labels), _LABELS_A_TIME):
            batch = labels[start : start + _LABELS_A_TIME]
            text = " ".join(f"{label}." for label in batch)
            tokens = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
            offsets = tokens.pop("offset_mapping")[0].tolist()
            output = model(**prepared, **tokens.to(device))
            found = output.logits[0].sigmoid()
            # Candidates of one pass know nothing of the labels of another.
            row = torch.zeros(len(found), len(labels), device=device)
            for number, places_of_label in enumerate(_tokens_of(batch, offsets)):
                row[:, start + number] = found[:, places_of_label].max(dim=1).values
            scores.append(row)
            places.append(output.pred_boxes[0])
        return torch.cat(scores), torch.cat(places)

    return model, find


def _tokens_of(labels: Sequence[str], offsets: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Numbers of the tokens of each label in "label. label. label."."""
    start = 0
    for label in labels:
        end = start + len(label)
        yield [number for number, (left, right) in enumerate(offsets) if start <= left < right <= end]
        start = end + 2


def _corners(places: Float[Tensor, "boxes 4"]) -> Float[Tensor, "boxes 4"]:
    x, y, width, height = places.unbind(1)
    return torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=1)


def _sides(values: Tensor) -> tuple[float, float, float, float]:
    left, top, right, bottom = (round(value, 3) for value in values.tolist())
    return left, top, right, bottom
