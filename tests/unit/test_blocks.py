"""Blocks with fewer passes over memory compute what diffusers' own do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from exactness import far_apart
from torch import nn

from tiny_sd_engine import checkpoint as checkpoints
from tiny_sd_engine.blocks import Resnet, Transformer, Upsample, fuse
from tiny_sd_engine.device import Device
from tiny_sd_engine.packed import can_pack, pack

BF16 = Device(torch.device("cpu"), torch.bfloat16)

pytestmark = pytest.mark.usefixtures("seeded")


def fused(block: nn.Module) -> nn.Module:
    network = nn.Sequential(copy.deepcopy(block))
    fuse(network)
    pack(network)
    return network[0]


def compare(block: nn.Module, kind: type[nn.Module], *inputs: Any, slack: float = 1.2) -> None:
    """Ours is about as far from the exact result, float32's, as diffusers' own in bfloat16, at most ``slack`` times."""
    block.eval()
    exact = _first(block(*(each.float() if isinstance(each, torch.Tensor) else each for each in inputs)))
    block.bfloat16()
    usual = far_apart(_first(block(*inputs)), exact)
    ours = fused(block)
    assert isinstance(ours, kind)
    tensors = [each for each in inputs if isinstance(each, torch.Tensor)]
    given = [each.clone() for each in tensors]
    assert far_apart(_first(ours(*inputs)), exact) <= slack * usual
    # Skip connections pass inputs on to later blocks.
    assert all(torch.equal(before, after) for before, after in zip(given, tensors, strict=True))


def _first(outputs: Any) -> torch.Tensor:
    return outputs if isinstance(outputs, torch.Tensor) else outputs[0]


@pytest.mark.parametrize("out", [32, 48])
@pytest.mark.parametrize("timed", [True, False])
@torch.inference_mode()
def test_a_resnet(out: int, timed: bool) -> None:
    block = ResnetBlock2D(in_channels=32, out_channels=out, temb_channels=64 if timed else None, groups=8)
    pictures = torch.randn(2, 32, 9, 12).bfloat16().to(memory_format=torch.channels_last)
    compare(block, Resnet, pictures, torch.randn(2, 64).bfloat16() if timed else None)


@torch.inference_mode()
def test_a_resnet_of_a_vae() -> None:
    block = ResnetBlock2D(in_channels=32, temb_channels=None, groups=8, time_embedding_norm="group")
    compare(block, Resnet, torch.randn(1, 32, 9, 12).bfloat16().to(memory_format=torch.channels_last), None)


@pytest.mark.parametrize("out", [32, 48])
@pytest.mark.parametrize("size", [None, (10, 23), (9, 24)])
@torch.inference_mode()
def test_an_upsampling(out: int, size: tuple[int, int] | None) -> None:
    pictures = torch.randn(2, 32, 5, 12).bfloat16().to(memory_format=torch.channels_last)
    # Sums of weights are rounded once more: two errors of one size make one of sqrt(2) times that.
    compare(Upsample2D(32, use_conv=True, out_channels=out), Upsample, pictures, size, slack=1.5)


def transformer(**settings: Any) -> Transformer2DModel:
    usual = {"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 32, "cross_attention_dim": 48}
    return Transformer2DModel(**{**usual, "norm_num_groups": 8, **settings})


@pytest.mark.parametrize("tokens", [1, 16, 77, 154])
@torch.inference_mode()
def test_a_transformer_whatever_the_length_of_the_text(tokens: int) -> None:
    pictures = torch.randn(2, 32, 6, 10).bfloat16().to(memory_format=torch.channels_last)
    compare(transformer(num_layers=2), Transformer, pictures, torch.randn(2, tokens, 48).bfloat16())


@pytest.mark.parametrize(
    "block",
    [
        ResnetBlock2D(in_channels=32, temb_channels=64, time_embedding_norm="scale_shift"),
        ResnetBlock2D(in_channels=32, temb_channels=64, down=True),
        ResnetBlock2D(in_channels=32, temb_channels=64, output_scale_factor=2.0),
        ResnetBlock2D(in_channels=32, temb_channels=64, non_linearity="gelu"),
        Upsample2D(32),
        Upsample2D(32, use_conv=True, kernel_size=5, padding=2),
        Upsample2D(32, use_conv_transpose=True),
        Upsample2D(32, use_conv=True, interpolate=False),
        transformer(use_linear_projection=True),
        transformer(activation_fn="gelu"),
        transformer(only_cross_attention=True),
        transformer(norm_type="ada_norm", num_embeds_ada_norm=10),
        transformer(cross_attention_dim=None),
    ],
)
def test_other_kinds_stay_as_they_are(block: nn.Module) -> None:
    assert type(fused(block)) is type(block)


@pytest.mark.skipif(not can_pack(BF16), reason="needs a processor whose oneDNN computes in bfloat16")
def test_no_block_of_a_checkpoint_stays_as_it_is(checkpoint: Path) -> None:
    for network in (checkpoints.load_unet(checkpoint, BF16), checkpoints.load_vae(checkpoint, BF16)):
        kinds = {type(module) for module in network.modules()}
        assert {Resnet, Upsample} <= kinds
        assert not {ResnetBlock2D, Transformer2DModel, Upsample2D} & kinds


@torch.inference_mode()
def test_other_attention_stays_as_it_is() -> None:
    block = transformer()
    inner = block.transformer_blocks[0]
    assert isinstance(inner, BasicTransformerBlock)
    inner.attn2.residual_connection = True
    assert type(fused(block)) is Transformer2DModel
