"""The three parts of the loss, and the blocks that are compared."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from distillation.losses import BlockPair, Weights, block_pairs, distillation_loss, task_loss, watched
from distillation.surgery import SIZES, Size, make_student
from tiny_sd_engine.architectures import ARCHITECTURES


@pytest.fixture(scope="module")
def teacher() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 24, 24),
        attention_head_dim=2,
        cross_attention_dim=12,
        norm_num_groups=4,
    )


def call(network: UNet2DConditionModel, edge: int = 8) -> torch.Tensor:
    device = network.device
    width = network.config.cross_attention_dim
    steps = torch.tensor([5], device=device)
    latents, embeddings = torch.ones(1, 4, edge, edge, device=device), torch.zeros(1, 3, width, device=device)
    return network(latents, steps, embeddings).sample


def test_a_tiny_student_of_four_levels_is_compared_as_segmind_compared_tiny_sd() -> None:
    pairs = [(pair.student, pair.teacher) for pair in block_pairs(4, "tiny")]
    assert pairs == [
        ("down_blocks.0", "down_blocks.0"),
        ("down_blocks.1", "down_blocks.1"),
        ("down_blocks.2", "up_blocks.0"),
        ("up_blocks.0", "up_blocks.1"),
        ("up_blocks.1", "up_blocks.2"),
        ("up_blocks.2", "up_blocks.3"),
    ]


def test_a_small_student_is_compared_block_by_block() -> None:
    names = [*(f"down_blocks.{n}" for n in range(4)), "mid_block", *(f"up_blocks.{n}" for n in range(4))]
    assert block_pairs(4, "small") == tuple(BlockPair(name, name) for name in names)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("edge", [64, 20], ids="latents of {}".format)
def test_blocks_that_are_compared_have_equal_shapes_in_full_size(size: Size, edge: int) -> None:
    with torch.device("meta"):
        teacher = UNet2DConditionModel(**ARCHITECTURES["sd15"].unet)
    student = make_student(teacher, size)
    pairs = block_pairs(4, size)
    with (
        watched(student, [pair.student for pair in pairs]) as ours,
        watched(teacher, [pair.teacher for pair in pairs]) as theirs,
    ):
        call(student, edge)
        call(teacher, edge)
    assert len(pairs) == len(ours) == len(theirs)
    for pair in pairs:
        assert ours[pair.student].shape == theirs[pair.teacher].shape


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [3, 5])
def test_blocks_that_are_compared_have_equal_shapes_at_other_depths(size: Size, levels: int) -> None:
    teacher = UNet2DConditionModel(
        block_out_channels=(8, 16, 24, 32, 32)[-levels:],
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        attention_head_dim=2,
        cross_attention_dim=12,
        norm_num_groups=4,
    )
    student = make_student(teacher, size)
    pairs = block_pairs(levels, size)
    with (
        watched(student, [pair.student for pair in pairs]) as ours,
        watched(teacher, [pair.teacher for pair in pairs]) as theirs,
    ):
        call(student)
        call(teacher)
    assert [ours[pair.student].shape for pair in pairs] == [theirs[pair.teacher].shape for pair in pairs]


def test_what_is_watched_is_what_the_blocks_give(teacher: UNet2DConditionModel) -> None:
    with watched(teacher, ["down_blocks.3", "mid_block", "up_blocks.3"]) as seen:
        prediction = call(teacher)
    assert torch.equal(teacher.mid_block(seen["down_blocks.3"], *mid_inputs(teacher)), seen["mid_block"])
    assert torch.equal(teacher.conv_out(teacher.conv_act(teacher.conv_norm_out(seen["up_blocks.3"]))), prediction)


def mid_inputs(network: UNet2DConditionModel) -> tuple[torch.Tensor, torch.Tensor]:
    time = network.time_embedding(network.time_proj(torch.tensor([5])))
    return time, torch.zeros(1, 3, network.config.cross_attention_dim)


def test_gradients_reach_the_student_through_what_is_watched(teacher: UNet2DConditionModel) -> None:
    teacher.zero_grad()
    with watched(teacher, ["down_blocks.0"]) as seen:
        call(teacher)
    seen["down_blocks.0"].square().mean().backward()
    assert teacher.conv_in.weight.grad.abs().sum() > 0
    assert teacher.conv_out.weight.grad is None


def test_nothing_watches_afterwards(teacher: UNet2DConditionModel) -> None:
    with pytest.raises(ZeroDivisionError), watched(teacher, ["mid_block", "up_blocks.0"]) as seen:
        _ = 1 // 0
    call(teacher)
    assert not seen
    assert not any(module._forward_hooks for module in teacher.modules())


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    def filled(value: float) -> torch.Tensor:
        return torch.full((2, 4, 3, 3), value)

    features = [(filled(0.0), filled(2.0)), (filled(1.0), filled(4.0))]
    losses = distillation_loss(filled(1.0), filled(3.0), filled(1.5), features, Weights())
    assert (losses.task, losses.output, losses.feature) == (4.0, 0.25, 13.0)
    assert losses.total == 17.25
    weighted = distillation_loss(filled(1.0), filled(3.0), filled(1.5), features, Weights(output=2.0, feature=0.5))
    assert weighted.total == 4 + 2 * 0.25 + 0.5 * 13
    alone = task_loss(filled(1.0), filled(3.0))
    assert (alone.total, alone.task, alone.output, alone.feature) == (4.0, 4.0, 0.0, 0.0)


def test_half_precision_features_are_compared_in_float32() -> None:
    ours, theirs = (torch.full((1, 1, 64, 64), value, dtype=torch.float16) for value in (300.0, -300.0))
    prediction = torch.zeros(1)
    loss = distillation_loss(prediction, prediction, prediction, [(ours, theirs)], Weights())
    assert loss.feature == 360_000.0  # float16 ends at 65,504
