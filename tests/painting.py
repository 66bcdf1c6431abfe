"""A checkpoint that takes the noise off and paints its latents, as trained ones do and random weights do not.

Both networks pass each latent channel and its negative from end to end. In front of the last layer stand a group
normalization and a SiLU, and silu(x) - silu(-x) = x. So the U-Net takes what it sees for noise, but for a part that
remains; and a picture's colours are its latents, mixed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

MIX = torch.tensor([[0.4, 0.1, -0.1], [-0.2, 0.3, 0.1], [0.1, -0.2, 0.4], [0.2, 0.2, 0.2]])
"""[latent channels, colours]."""
CHANNELS = len(MIX)
SIGNS = torch.stack([torch.eye(CHANNELS), -torch.eye(CHANNELS)], dim=1).flatten(0, 1)
"""[2 x channels, channels]: each channel and its negative."""
NOISE = 0.93
"""Of what the U-Net sees; the rest leaves latents of about variance 1, whose noise began at a deviation of 14.6."""


def write_painting(checkpoint: Path, out: Path) -> Path:
    """Copy a checkpoint of the ``test`` architecture, with such networks, to the folder ``out``."""
    shutil.copytree(checkpoint, out)
    vae = AutoencoderKL.from_pretrained(out / "vae")
    unet = UNet2DConditionModel.from_pretrained(out / "unet")
    with torch.no_grad():
        _paint(vae)
        _denoise(unet)
    vae.save_pretrained(out / "vae")
    unet.save_pretrained(out / "unet")
    return out


def _denoise(unet: UNet2DConditionModel) -> None:
    _set(unet.conv_in, SIGNS)
    # The last block gets what conv_in gave, behind what comes from below.
    last = unet.up_blocks[-1].resnets[-1]
    below = last.conv_shortcut.in_channels - unet.conv_in.out_channels
    _set(last.conv2, torch.zeros(1, 1))
    _set(last.conv_shortcut, torch.eye(below + 2 * CHANNELS)[below:])
    _set(unet.conv_out, NOISE * SIGNS.T)


def _paint(vae: AutoencoderKL) -> None:
    decoder = vae.decoder
    _set(vae.post_quant_conv, torch.eye(CHANNELS))
    _set(decoder.conv_in, SIGNS)
    for layer in decoder.modules():
        if isinstance(layer, ResnetBlock2D):
            _set(layer.conv2, torch.zeros(1, 1))
            if layer.conv_shortcut is not None:
                _set(layer.conv_shortcut, torch.eye(2 * CHANNELS))
        elif isinstance(layer, Attention):
            layer.to_out[0].weight.zero_()
            layer.to_out[0].bias.zero_()
        elif isinstance(layer, Upsample2D):
            _set(layer.conv, torch.eye(2 * CHANNELS))
    _set(decoder.conv_out, (SIGNS @ MIX).T)


def _set(convolution: torch.nn.Conv2d, matrix: torch.Tensor) -> None:
    """Each pixel by itself, times the matrix [outputs, inputs]; what it does not reach is zero."""
    convolution.weight.zero_()
    convolution.bias.zero_()
    middle = convolution.kernel_size[0] // 2
    rows, columns = matrix.shape
    convolution.weight[:rows, :columns, middle, middle] = matrix
