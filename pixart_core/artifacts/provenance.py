"""How a generated image was made, as its PNG tells: written with it, and read to make it again."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Self

from PIL import Image

from pixart_core.artifacts.samples import PNG_TEXT, SampleRecord
from pixart_core.errors import UserError

# Field of `Settings` that tells the hash of a part of the model.
HASHES = {
    "transformer": "weights_hash",
    "vae": "vae_hash",
    "text_encoder": "text_encoder_hash",
    "uncond": "uncond_hash",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all images of a sample set have in common; None where an earlier pixart did not record it.

    Attributes:
        checkpoint: fingerprint of the checkpoint's folder.
        checkpoint_path: the folder, relative to the sample set's; None for a checkpoint on the hub.
        checkpoint_hub: its id and commit there.
        weights_hash, vae_hash: of the transformer's and the VAE's weights as they were used (after the
            change of type).
        text_encoder_hash: of the weights as they were stored.
        uncond_hash: of the learned unconditional caption, `empty` for a model that encodes the empty one.
        device: kind (cpu, cuda); another one rounds differently.
    """

    scheduler: str | None = None
    guidance_interval: tuple[float, float] | None = None
    dtype: str | None = None
    text_encoder_quantization: str | None = None
    vae_tiling: bool | None = None
    device: str | None = None
    checkpoint: str | None = None
    checkpoint_path: str | None = None
    checkpoint_hub: str | None = None
    weights_hash: str | None = None
    vae_hash: str | None = None
    text_encoder_hash: str | None = None
    uncond_hash: str | None = None
    pixart_version: str | None = None
    torch_version: str | None = None
    diffusers_version: str | None = None
    transformers_version: str | None = None

    @property
    def weights(self) -> dict[str, str]:
        """Hash of each part of the model that is recorded, by its name in `SampleStep.weights`."""
        hashes = {part: getattr(self, field) for part, field in HASHES.items()}
        return {part: recorded for part, recorded in hashes.items() if recorded is not None}


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What the PNG at `path` tells of itself."""

    path: Path
    record: SampleRecord
    settings: Settings

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises:
        UserError: no image, or one that does not tell how it was made, or not in words known here."""
        try:
            with Image.open(path) as image:
                image.load()
                text = getattr(image, "text", {}).get(PNG_TEXT)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as an image: {error}") from error
        if text is None:
            raise UserError(
                f"{path} does not tell how it was made: not a PNG of `pixart sample`, or a copy without its "
                "metadata"
            )
        try:
            told = json.loads(text)
            record, settings = (_pick(kind, told) for kind in (SampleRecord, Settings))
            return cls(path, record, settings)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: its metadata is damaged ({error})") from error

    def find_checkpoint(self) -> str:
        """The folder that the image was made with, if it still lies as it did from the sample set.

        Of a checkpoint on the hub its id and commit.

        Raises:
            UserError: not recorded, or not there.
        """
        if self.settings.checkpoint_hub is not None:
            return self.settings.checkpoint_hub
        recorded = self.settings.checkpoint_path
        if recorded is None:
            raise UserError(f"{self.path} does not tell its checkpoint's folder: give --checkpoint")
        # The image may have been taken out of its sample set.
        within = Path(self.record.file) == Path(self.path.parent.name, self.path.name)
        folder = Path(os.path.normpath((self.path.parent.parent if within else self.path.parent) / recorded))
        if not folder.is_dir():
            raise UserError(f"{self.path}: its checkpoint {folder} is not there: give --checkpoint")
        return str(folder)

    def options(self) -> dict[str, Any]:
        """Fields of `SampleStep` that draw it again, but for the checkpoint."""
        record, settings = self.record, self.settings
        options = {
            "prompts": (record.prompt,),
            "image_seeds": (record.seed,),
            "sizes": ((record.height, record.width),),
            "any_size": record.untrained_size,
            "negative_prompt": record.negative_prompt,
            "guidance_scale": record.guidance_scale,
            "num_inference_steps": record.num_inference_steps,
            "scheduler": settings.scheduler,
            "guidance_interval": settings.guidance_interval,
            "dtype": settings.dtype,
            "text_encoder_quantization": settings.text_encoder_quantization,
            "vae_tiling": settings.vae_tiling,
            "weights": settings.weights,
        }
        return {name: value for name, value in options.items() if value is not None}


def _pick(kind: Any, told: dict[str, Any]) -> Any:
    """A dataclass of those entries that it knows."""
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in told.items() if name in names})
