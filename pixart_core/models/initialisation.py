"""Initial weights of DiT and PixArt (released code, made a function of width)."""

from torch import nn

from pixart_core.models.embeddings import CaptionProjection, ClassEmbedding, EmbeddingMLP


def initialise(model: nn.Module, width: int) -> None:
    """Xavier-uniform linears, zero biases, N(0, 1/fan_in) embedding MLPs, zeros where a branch starts silent.

    The released code draws the timestep, caption and modulation MLPs with std 0.02, chosen for width 1152
    (1/sqrt(1152) = 0.029). At width 128 that starves them, and 1/sqrt(fan_in) does not.
    Silent: the output projection of cross-attention and the final linear; in DiT also the
    modulation MLPs (adaLN-Zero). On the meta device there is nothing to draw, and drawing there would import
    torch's compiler (1.4 s).
    """
    if next(model.parameters()).is_meta:
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        if name.endswith(("attn2.to_out.0", "norm1.linear", "proj_out", "proj_out_1", "proj_out_2")):
            nn.init.zeros_(module.weight)
    for name, module in model.named_modules():
        if isinstance(module, EmbeddingMLP | CaptionProjection):
            for linear in (module.linear_1, module.linear_2):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        elif isinstance(module, ClassEmbedding):
            nn.init.normal_(module.embedding_table.weight, std=width**-0.5)
        elif name == "adaln_single.linear":
            nn.init.normal_(module.weight, std=width**-0.5)
