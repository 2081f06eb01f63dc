"""Whether features were made by the encoders that a checkpoint knows: latents of two VAEs look alike."""

import dataclasses

from pixart_core.artifacts.checkpoint import ModelFacts
from pixart_core.artifacts.features import FeatureStore
from pixart_core.errors import UserError
from pixart_core.models.config import TransformerConfig
from pixart_core.recipe.training import TrainStep


def with_encoders(facts: ModelFacts, config: TransformerConfig, store: FeatureStore) -> ModelFacts:
    """`facts` of a model trained on `store`.

    A class-conditional model has never seen the text encoder, so it binds nobody to it.
    """
    vae, text = store.details["vae"], store.details["text_encoder"]
    return dataclasses.replace(
        facts,
        vae=vae["source"],
        vae_hash=vae.get("hash"),
        vae_scaling_factor=store.scaling_factor,
        text_encoder=text["source"],
        text_encoder_hash=text.get("hash") if config.conditioning == "text" else None,
    )


def refuse_other_encoders(
    step: TrainStep, config: TransformerConfig, store: FeatureStore, before: ModelFacts
) -> tuple[str, ...]:
    """Compare the encoders of `store` with those that `step.init` was trained with.

    Args:
        config: of the model to train.
        before: facts of `step.init`; those that its card does not tell are not compared.

    Returns:
        what the user should know, one sentence each.

    Raises:
        UserError: another VAE, scaling factor or text encoder, and the step does not say so.
    """
    now = with_encoders(ModelFacts(), config, store)
    differences = []
    if _differ(before.vae_hash, now.vae_hash):
        differences.append(_told("VAE", before.vae, before.vae_hash, now.vae, now.vae_hash))
    elif _differ(before.vae_scaling_factor, now.vae_scaling_factor):
        differences.append(
            f"scaling factor of the VAE: {before.vae_scaling_factor:g} before, "
            f"{now.vae_scaling_factor:g} in the features"
        )
    if config.conditioning == "text" and _differ(before.text_encoder_hash, now.text_encoder_hash):
        names = (before.text_encoder, before.text_encoder_hash, now.text_encoder, now.text_encoder_hash)
        differences.append(_told("text encoder", *names))
    if not differences:
        return ()
    message = f"{step.init} was trained with other encoders than the features: {'; '.join(differences)}"
    if step.allow_other_encoders:
        return (message,)
    raise UserError(
        f"{message}; extract the features with the encoders of before, "
        "or set allow_other_encoders: true if the model shall learn the new ones"
    )


def _differ(one: object, other: object) -> bool:
    return one is not None and other is not None and one != other


def _told(what: str, name: str, weights: str | None, new_name: str, new_weights: str | None) -> str:
    return f"{what} {name} (weights {weights}) before, {new_name} (weights {new_weights}) in the features"
