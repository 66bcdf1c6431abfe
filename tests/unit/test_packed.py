"""Networks with packed weights compute what they computed before."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from statistics import fmean

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from exactness import far_apart
from torch import nn

from tiny_sd_engine import checkpoint as checkpoints
from tiny_sd_engine.device import Device
from tiny_sd_engine.packed import can_pack, pack

BF16 = Device(torch.device("cpu"), torch.bfloat16)
PLAIN = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, GEGLU)

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(48, 40), (2, 77, 48)),
        (nn.Linear(48, 40, bias=False), (2, 48)),
        (GEGLU(48, 96), (2, 30, 48)),
        (GEGLU(48, 96, bias=False), (2, 30, 48)),
        (nn.Conv2d(16, 24, 3, padding=1), (2, 16, 9, 12)),
        (nn.Conv2d(16, 24, 3, stride=2, padding=1), (1, 16, 9, 12)),
        (nn.Conv2d(16, 24, 1, bias=False), (3, 16, 5, 5)),
        (nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=4), (1, 16, 9, 9)),
        (nn.ConvTranspose2d(16, 24, 4, stride=2, padding=1), (2, 16, 5, 7)),
        (nn.ConvTranspose2d(16, 24, 3, bias=False), (1, 16, 5, 7)),
    ],
    ids=lambda value: str(value).split("\n")[0] if isinstance(value, nn.Module) else None,
)
@torch.inference_mode()
def test_a_packed_layer_is_as_exact_as_the_plain_one(layer: nn.Module, shape: tuple[int, ...]) -> None:
    for part in layer.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            part.reset_parameters()  # they were drawn before there was a seed
    # Of a single draw the largest difference is a matter of luck.
    inputs = [torch.randn(shape).bfloat16() for _ in range(20)]
    if len(shape) == 4:
        inputs = [each.to(memory_format=torch.channels_last) for each in inputs]
    network = nn.Sequential(layer).to(torch.bfloat16)
    exact = [nn.Sequential(layer).float()(each.float()) for each in inputs]
    network.to(torch.bfloat16)
    plain = [network(each) for each in inputs]
    pack(network)
    assert not any(isinstance(module, PLAIN) for module in network.modules())
    packed = [network(each) for each in inputs]
    assert {each.dtype for each in packed} == {torch.bfloat16}
    usual = fmean(map(far_apart, plain, exact))
    assert fmean(map(far_apart, packed, exact)) <= max(usual, 0.02)


@pytest.mark.skipif(not can_pack(BF16), reason="needs a processor whose oneDNN computes in bfloat16")
@torch.inference_mode()
def test_the_unet_is_packed_in_bfloat16_and_gives_the_same(checkpoint: Path) -> None:
    ours = checkpoints.load_unet(checkpoint, BF16)
    assert not any(isinstance(module, PLAIN) for module in ours.modules())
    plain = UNet2DConditionModel.from_pretrained(checkpoint / "unet", torch_dtype=torch.bfloat16).eval()
    exact = UNet2DConditionModel.from_pretrained(checkpoint / "unet").eval()
    texts = torch.randn(2, 77, plain.config.cross_attention_dim).bfloat16()
    latents = torch.randn(2, plain.config.in_channels, 16, 24).bfloat16().to(memory_format=torch.channels_last)
    wanted = exact(latents.float(), torch.tensor([500.0, 20.0]), texts.float()).sample
    usual = far_apart(plain(latents, torch.tensor([500.0, 20.0]), texts).sample, wanted)
    assert far_apart(ours(latents, torch.tensor([500.0, 20.0]), texts).sample, wanted) <= 1.5 * usual


def test_other_precisions_and_devices_keep_their_layers(checkpoint: Path) -> None:
    assert not can_pack(Device(torch.device("cuda", 0), torch.bfloat16))
    network = checkpoints.load_unet(checkpoint, Device(torch.device("cpu"), torch.float32))
    assert any(isinstance(module, nn.Conv2d) for module in network.modules())


def test_a_convolution_that_onednn_cannot_pad_stays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding="same"), nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"))
    pack(network)
    assert all(type(layer) is nn.Conv2d for layer in network)
    network = nn.Sequential(nn.ConvTranspose2d(3, 3, 3, stride=2, output_padding=1))
    pack(network)
    assert type(network[0]) is nn.ConvTranspose2d


def test_plain_weights_are_let_go() -> None:
    network = nn.Sequential(nn.Linear(64, 64), nn.Sequential(nn.Conv2d(8, 8, 3))).bfloat16()
    weights = [weakref.ref(weight) for weight in network.parameters() if weight.ndim > 1]
    pack(network)
    gc.collect()
    assert [weight() for weight in weights] == [None, None]
