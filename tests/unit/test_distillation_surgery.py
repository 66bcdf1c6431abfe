"""A student is cut from its teacher as BK-SDM and Segmind cut theirs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from distillation.errors import UnfitTeacher
from distillation.surgery import SIZES, Size, make_student, student_config
from tiny_sd_engine.architectures import ARCHITECTURES

# Not SD 1.5 in any number, and with as many of a configuration's values as can be given level by level.
OTHER = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 48, 48),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
    "up_block_types": (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
    "attention_head_dim": (2, 4, 6, 8),
    "transformer_layers_per_block": (1, 2, 1, 1),
    "only_cross_attention": (False, True, False, False),
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}
SD15 = ARCHITECTURES["sd15"].unet


def unet(config: Any, device: str = "cpu") -> UNet2DConditionModel:
    torch.manual_seed(0)
    with torch.device(device):
        return UNet2DConditionModel(**config).eval()


def outputs(network: UNet2DConditionModel) -> torch.Tensor:
    chance = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=chance)
    embeddings = torch.randn(2, 7, network.config.cross_attention_dim, generator=chance)
    with torch.no_grad():
        return network(latents, torch.tensor([3, 700]), embeddings).sample


def remove_blocks(teacher: UNet2DConditionModel, size: Size) -> UNet2DConditionModel:
    """Segmind's way: the blocks of a four-level U-Net with two layers are deleted in place."""
    cut = copy.deepcopy(teacher)
    for block in cut.down_blocks:
        del block.resnets[1]
        if hasattr(block, "attentions"):
            del block.attentions[1]
    for block in cut.up_blocks:
        del block.resnets[1]
        if hasattr(block, "attentions"):
            del block.attentions[1]
    if size == "tiny":
        cut.mid_block = None
        del cut.down_blocks[3]
        cut.down_blocks[2].downsamplers = None
        del cut.up_blocks[0]
    return cut


@pytest.mark.parametrize(
    ("size", "name", "parameters"), [("small", "small-sd", 579_384_964), ("tiny", "tiny-sd", 323_384_964)]
)
def test_sd15_becomes_small_sd_and_tiny_sd(size: Size, name: str, parameters: int) -> None:
    teacher = unet(SD15, "meta")
    assert sum(weight.numel() for weight in teacher.parameters()) == 859_520_964
    student = make_student(teacher, size)
    expected = unet(ARCHITECTURES[name].unet, "meta")
    assert sum(weight.numel() for weight in student.parameters()) == parameters
    assert {key: value for key, value in student.config.items() if not key.startswith("_")} == {
        key: value for key, value in expected.config.items() if not key.startswith("_")
    }
    shapes = {key: tensor.shape for key, tensor in expected.state_dict().items()}
    assert {key: tensor.shape for key, tensor in student.state_dict().items()} == shapes


@pytest.mark.parametrize("size", SIZES)
def test_what_is_left_computes_what_the_teacher_without_the_blocks_does(size: Size) -> None:
    teacher = unet(OTHER)
    student = make_student(teacher, size).eval()
    assert torch.equal(outputs(student), outputs(remove_blocks(teacher, size)))
    assert not torch.allclose(outputs(student), outputs(teacher), atol=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_training_a_student_leaves_its_teacher_alone(size: Size) -> None:
    teacher = unet(OTHER).requires_grad_(False)
    before = outputs(teacher)
    student = make_student(teacher, size)
    assert all(weight.requires_grad for weight in student.parameters())
    for weight in student.parameters():
        weight.data.zero_()
    assert torch.equal(outputs(teacher), before)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("levels", "layers"), [(3, 2), (4, 3), (5, 2)], ids=["three levels", "three layers", "five levels"]
)
def test_teachers_of_other_depths_are_cut_alike(size: Size, levels: int, layers: int) -> None:
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16, 24, 32, 32)[-levels:],
        "layers_per_block": layers,
        "down_block_types": ("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        "attention_head_dim": 2,
        "cross_attention_dim": 24,
        "norm_num_groups": 8,
    }
    teacher = unet(config)
    student = make_student(teacher, size)
    assert len(student.down_blocks) == levels - (size == "tiny")
    assert {len(block.resnets) for block in student.down_blocks} == {1}
    assert {len(block.resnets) for block in student.up_blocks} == {2}
    assert outputs(student).shape == outputs(teacher).shape
    last = f"up_blocks.{levels - 1}.resnets.{layers}.conv1.weight"
    own = f"up_blocks.{len(student.up_blocks) - 1}.resnets.1.conv1.weight"
    assert torch.equal(student.state_dict()[own], teacher.state_dict()[last])


def test_a_student_has_its_teachers_precision() -> None:
    teacher = torch.nn.Module.to(unet(OTHER), torch.bfloat16)
    assert {weight.dtype for weight in make_student(teacher, "tiny").parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "size", "complaint"),
    [
        ({"layers_per_block": 1}, "small", "layers_per_block is 1"),
        ({"layers_per_block": (2, 2, 2, 3)}, "tiny", "layers_per_block is"),
        ({"reverse_transformer_layers_per_block": (1, 1, 2, 1)}, "small", "transformer layers"),
        ({"block_out_channels": (16, 32, 48, 64)}, "tiny", "48 and 64 wide"),
        ({"block_out_channels": (16, 16)}, "tiny", "has 2 levels"),
    ],
)
def test_a_teacher_that_cannot_be_cut_is_refused(change: dict[str, Any], size: Size, complaint: str) -> None:
    config = {**unet(OTHER, "meta").config, **change}
    with pytest.raises(UnfitTeacher, match=complaint):
        student_config(config, size)


def test_levels_of_unequal_widths_still_make_a_small_student() -> None:
    teacher = unet({**OTHER, "block_out_channels": (16, 32, 48, 64)})
    assert outputs(make_student(teacher, "small")).shape == (2, 4, 8, 8)
