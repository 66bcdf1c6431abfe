"""Cut a student out of a teacher's U-Net: blocks are removed, the weights of the rest are copied.

Of SD 1.5 (four levels, two layers each, 859,520,964 parameters) this leaves, with the numbers of BK-SDM's Base and of
segmind/small-sd and segmind/tiny-sd:

small   579,384,964   each down block keeps its first resnet and attention, each up block its first and its last
tiny    323,384,964   and there is no middle block, no innermost level, and no downsampler that led to it
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from diffusers import UNet2DConditionModel

from distillation.errors import UnfitTeacher

Size = Literal["small", "tiny"]
SIZES: tuple[Size, ...] = get_args(Size)

# What a U-Net's configuration may say once for each level, the outermost level first, and from the innermost on.
_OUTER_FIRST = (
    "block_out_channels",
    "down_block_types",
    "attention_head_dim",
    "cross_attention_dim",
    "only_cross_attention",
    "transformer_layers_per_block",
)
_INNER_FIRST = ("up_block_types",)
_LAYER = re.compile(r"up_blocks\.(?P<block>\d+)\.(?:(?P<kind>resnets|attentions)\.(?P<layer>\d+)\.)?(?P<rest>.*)")


def make_student(teacher: UNet2DConditionModel, size: Size) -> UNet2DConditionModel:
    """A student of the size, in the teacher's precision and on its device, with copies of the teacher's weights.

    Raises UnfitTeacher for a U-Net that cannot be cut so.
    """
    config = student_config(teacher.config, size)
    with torch.device("meta"):
        student = UNet2DConditionModel.from_config(config)
    weights = teacher.state_dict()
    copies = {name: weights[teacher_name(name, teacher.config, size)].clone() for name in student.state_dict()}
    student.load_state_dict(copies, assign=True)
    return student


def student_config(teacher: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """The configuration of the student's U-Net. Raises UnfitTeacher."""
    _check(teacher, size)
    config = {name: value for name, value in teacher.items() if not name.startswith("_")}
    config["layers_per_block"] = 1
    if size == "tiny":
        config["mid_block_type"] = None
        for name in _OUTER_FIRST:
            if isinstance(config[name], list | tuple):
                config[name] = tuple(config[name])[:-1]
        for name in _INNER_FIRST:
            config[name] = tuple(config[name])[1:]
    return config


def teacher_name(name: str, teacher: Mapping[str, Any], size: Size) -> str:
    """The name in the teacher of the tensor that the student calls `name`; `teacher` is the teacher's configuration.

    >>> teacher_name("up_blocks.0.resnets.1.conv1.weight", {"layers_per_block": 2}, "tiny")
    'up_blocks.1.resnets.2.conv1.weight'
    """
    part = _LAYER.fullmatch(name)
    if part is None:
        return name
    block = int(part["block"]) + (1 if size == "tiny" else 0)
    # An up block has a layer more than its down block. The last one stays, because it takes the outermost skip.
    layer = "" if part["kind"] is None else f"{part['kind']}.{int(part['layer']) * teacher['layers_per_block']}."
    return f"up_blocks.{block}.{layer}{part['rest']}"


def _check(teacher: Mapping[str, Any], size: Size) -> None:
    layers = teacher["layers_per_block"]
    if not isinstance(layers, int) or layers < 2:
        raise UnfitTeacher(f"the teacher's layers_per_block is {layers}; a student keeps one of two or more")
    if teacher["reverse_transformer_layers_per_block"] is not None:
        raise UnfitTeacher("the teacher's up blocks have numbers of transformer layers of their own; SD 1.x's have not")
    if size == "tiny":
        widths = teacher["block_out_channels"]
        if len(widths) < 3:
            raise UnfitTeacher(f"the teacher has {len(widths)} levels; a tiny student needs one of three or more")
        if widths[-1] != widths[-2]:
            raise UnfitTeacher(
                f"the teacher's two innermost levels are {widths[-2]} and {widths[-1]} wide; a tiny student joins "
                "what is left around the innermost, so they must be equal"
            )
