"""Build the transformer that a config describes."""

from pixart_core.models.config import TransformerConfig
from pixart_core.models.dit import DiTTransformer
from pixart_core.models.pixart import PixArtTransformer

Transformer = PixArtTransformer | DiTTransformer


def build_transformer(config: TransformerConfig) -> Transformer:
    """A newly initialised PixArt or DiT; the global torch seed decides its weights."""
    return PixArtTransformer(config) if config.conditioning == "text" else DiTTransformer(config)
