"""An `AutoencoderKL` whose weights are set, not learned: 2x2 means down, bilinear interpolation up.

Its latents are a small RGB picture in [-1, 1], so a quickstart needs neither a download nor a training
run, and every tool that takes an `AutoencoderKL` takes this one.

The standard class normalises and bends what passes through; both are undone exactly:
- Channels are (r, g, b, -r, -g, -b, K, -K). Their mean is 0 and their standard deviation K/2, whatever the
  picture (to 2e-5 with K = 256), so GroupNorm is a division by a known number.
- SiLU(x) - SiLU(-x) = x, so the pairs give the picture back.
- An upsampler's convolution sees zeros beyond the border and darkens it to 3/4 (corners: 9/16). The
  residual block after it adds the missing 1/3 (7/9) there, see `_brighten_border`.
"""

from typing import Any

import torch
from diffusers.models import AutoencoderKL
from torch import Tensor, nn

_COLOURS = 3
_CHANNELS = 8
_PLUS, _MINUS = 6, 7  # the channels +K and -K
_K = 256.0
_SIGMA = _K / 2  # sqrt(mean of squares) of a pixel's eight channels
_GATE_K = 512.0  # the same for the inside of a border block; small enough to be exact in bfloat16
_RANGE = 4.0  # |value| below which the border is exact, in units of [-1, 1]
_STEEP = 16.0  # SiLU(16 x) / 16 is max(x, 0) to 2e-7 for |x| >= 1
# What a border block adds, about 1/3 at edges and 4/9 more in corners. These and their sums are exact in
# bfloat16, so that what must cancel cancels there too; the border is off by a quarter of a grey level for it.
_EDGE_GAIN, _CORNER_GAIN = 43 / 128, 57 / 128

_CENTRE = torch.zeros(3, 3)
_CENTRE[1, 1] = 1.0
_SIDES = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
_DIAGONALS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
_MEAN_2X2 = torch.tensor([[0.25, 0.25, 0.0], [0.25, 0.25, 0.0], [0.0, 0.0, 0.0]])  # of a stride-2 convolution
# After doubling every pixel, this is bilinear interpolation between pixel centres.
_BILINEAR = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16

# Of a constant 1 with zeros around it: how many of a pixel's neighbours lie beyond a side of the picture
# (0 inside, 1 at an edge, 2 in a corner), whether it is a corner, whether it is at the border at all.
_BEYOND = 4 * _CENTRE - _SIDES
_CORNER = _DIAGONALS - 2 * _SIDES + 4 * _CENTRE
_BORDER = _BEYOND - _CORNER


@torch.no_grad()
def build_analytic_vae(downsamplings: int, scaling_factor: float = 1.0) -> AutoencoderKL:
    """An autoencoder with 3 latent channels that halves the sides `downsamplings` times.

    Encoding is the exact mean over blocks of 2^f x 2^f pixels, with the standard deviation at diffusers'
    floor of 3e-7; decoding is `downsamplings` exact bilinear doublings. Sides must be multiples of 2^f.

    Args:
        downsamplings: f, at least 0.
        scaling_factor: what latents are multiplied with for diffusion, saved in the config.
    """
    levels = downsamplings + 1
    vae = AutoencoderKL(
        in_channels=_COLOURS,
        out_channels=_COLOURS,
        latent_channels=_COLOURS,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(_CHANNELS,) * levels,
        layers_per_block=0,
        norm_num_groups=1,
        sample_size=64,
        scaling_factor=scaling_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    for parameter in vae.parameters():
        parameter.zero_()

    for half in (vae.encoder, vae.decoder):
        for sign, first in ((1.0, 0), (-1.0, _COLOURS)):
            for colour in range(_COLOURS):
                half.conv_in.weight[first + colour, colour] = sign * _CENTRE
        _write_constants(half.conv_in)
        half.conv_norm_out.weight[: 2 * _COLOURS] = _SIGMA
        for colour in range(_COLOURS):
            _read_colour(half.conv_out, colour, colour, _CENTRE)
    vae.encoder.conv_out.bias[_COLOURS:] = -30.0  # log variance

    for block in vae.encoder.down_blocks[:-1]:
        _filter(block.downsamplers[0].conv, _MEAN_2X2)
    for number, block in enumerate(vae.decoder.up_blocks):
        if number < downsamplings:
            _filter(block.upsamplers[0].conv, _BILINEAR)
        if number > 0:
            _brighten_border(block.resnets[0])
    return vae.eval()


def _write_constants(conv: nn.Conv2d) -> None:
    assert conv.bias is not None
    conv.bias[_PLUS], conv.bias[_MINUS] = _K, -_K


def _read_colour(conv: nn.Conv2d, out: int, colour: int, kernel: Tensor) -> None:
    """Let channel `out` be `kernel` over `colour`, from channels that went through SiLU."""
    conv.weight[out, colour] += kernel
    conv.weight[out, _COLOURS + colour] -= kernel


def _filter(conv: nn.Conv2d, kernel: Tensor) -> None:
    """Apply `kernel` to each of the six picture channels; K and -K are set anew."""
    for channel in range(2 * _COLOURS):
        conv.weight[channel, channel] = kernel
    _write_constants(conv)


def _brighten_border(resnet: Any) -> None:
    """Let a residual block add u/3 to the edge pixels u, 7u/9 to the corners, nothing elsewhere.

    With A = 4 > |u|, two gates a colour are open (A + u, A - u) only at the border, only in a corner:
        g1 = max(0, u + A - 2A (1 - border)),  g2 = max(0, -u + A - 2A (1 - corner))
        u/3 border + 4u/9 corner = g1/3 - 4/9 g2 - A/3 border + 4A/9 corner.
    `border` and `corner` are convolutions of a constant, which the zeros around the picture give away.
    """
    norm1, conv1, norm2, conv2 = resnet.norm1, resnet.conv1, resnet.norm2, resnet.conv2
    norm1.weight[: 2 * _COLOURS] = _SIGMA
    # The constant as 64: large enough for SiLU to leave it as it is.
    constant = 64.0
    norm1.weight[_PLUS] = _SIGMA * constant / _K
    for colour in range(_COLOURS):
        for gate, sign, where in ((colour, 1.0, _BORDER), (_COLOURS + colour, -1.0, _CORNER)):
            _read_colour(conv1, gate, colour, sign * _CENTRE)
            conv1.weight[gate, _PLUS] = 2 * _RANGE * where / constant
            conv1.bias[gate] = -_RANGE
    conv1.bias[_PLUS] = _GATE_K
    # The channels of a pixel add up to zero, so that the normalisation subtracts nothing.
    conv1.weight[_MINUS] = -conv1.weight.sum(0)
    conv1.bias[_MINUS] = -conv1.bias.sum()

    # sqrt(mean of squares) inside the picture
    sigma = float(conv1.bias.square().mean().sqrt())
    norm2.weight[: 2 * _COLOURS] = sigma * _STEEP
    norm2.weight[_PLUS] = sigma * constant / _GATE_K
    for colour in range(_COLOURS):
        for out, sign in ((colour, 1.0), (_COLOURS + colour, -1.0)):
            conv2.weight[out, colour] = sign * _EDGE_GAIN / _STEEP * _CENTRE
            conv2.weight[out, _COLOURS + colour] = -sign * _CORNER_GAIN / _STEEP * _CENTRE
            back = _CORNER_GAIN * _CORNER - _EDGE_GAIN * _BORDER
            conv2.weight[out, _PLUS] = sign * _RANGE * back / constant
