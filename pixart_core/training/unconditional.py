"""What dropped captions become: the encoded empty caption, or the learned embedding of the released code."""

import torch
from jaxtyping import Float
from torch import Tensor

from pixart_core.artifacts.features import FeatureStore
from pixart_core.artifacts.uncond import missing_uncond
from pixart_core.errors import UserError
from pixart_core.models.config import TransformerConfig
from pixart_core.recipe.training import TrainStep
from pixart_core.seeding import derive_seed
from pixart_core.training.batches import Unconditional
from pixart_core.training.initial import Initial


def find_unconditional(
    step: TrainStep, store: FeatureStore, config: TransformerConfig, initial: Initial | None
) -> Unconditional | None:
    """What `step.uncond` asks for, else what the model was trained with so far; None for a DiT.

    Args:
        config: of the model to train.
        initial: where it comes from; None for a new model.

    Raises:
        UserError: the learned embedding that the model was trained with is lost or does not fit, or the
            features hold no empty caption.
    """
    if config.conditioning == "class":
        return None
    before = "empty" if initial is None else initial.facts.uncond
    if (step.uncond or before) == "empty":
        if store.details.get("empty_caption") is False:
            raise UserError(
                f"{store.folder} holds no encoded empty caption: it was imported without its text encoder; "
                "import it again with text_encoder=..., or train with uncond: learned"
            )
        return Unconditional(store.empty_caption().float(), keeps_mask=False)
    if initial is None or before == "empty":
        return Unconditional(_new_embedding(step, store, config), keeps_mask=True)
    if initial.y_embedding is None:
        raise missing_uncond(step.init)
    _check_fit(initial.y_embedding, step, store)
    return Unconditional(initial.y_embedding.float(), keeps_mask=True)


def _new_embedding(
    step: TrainStep, store: FeatureStore, config: TransformerConfig
) -> Float[Tensor, "l caption"]:
    """The released code's y_embedding: fixed at random, never trained."""
    generator = torch.Generator().manual_seed(derive_seed(step.seed, "learned unconditional"))
    channels = config.caption_channels
    return torch.randn(store.max_tokens, channels, generator=generator) / channels**0.5


def _check_fit(y_embedding: Tensor, step: TrainStep, store: FeatureStore) -> None:
    length, width = y_embedding.shape
    if length < store.max_tokens or width != store.caption_channels:
        raise UserError(
            f"the learned unconditional caption of {step.init} has {length} tokens of width {width}, the "
            f"features have captions of up to {store.max_tokens} tokens of width {store.caption_channels}; "
            f"extract them with max_tokens={length}, or train with uncond: empty"
        )
