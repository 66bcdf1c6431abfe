"""The networks of a run: the student and, frozen, all that it learns from; and the checkpoint they become."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from distillation.errors import UnfitOptions, UnfitTeacher
from distillation.losses import BlockPair, block_pairs
from distillation.options import Options
from distillation.surgery import make_student
from tiny_sd_engine.checkpoint import (
    inspect,
    latent_shape,
    load_scheduler_config,
    load_text_encoder,
    load_tokenizer,
    load_unet,
)
from tiny_sd_engine.device import Device

_CPU = Device(torch.device("cpu"), torch.float32)
_PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Networks:
    """On the CPU in float32. Only the student, and a text encoder that is trained along, have gradients."""

    student: UNet2DConditionModel
    teacher: UNet2DConditionModel | None
    more_sizes_teacher: UNet2DConditionModel | None
    """Of all sizes but the first; the same as `teacher`, or another one."""
    pairs: tuple[BlockPair, ...]
    """Blocks of student and teacher that are compared; none without a teacher."""
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    vae: AutoencoderKL
    noise: DDPMScheduler
    """Adds noise as the checkpoint's scheduler configuration says."""
    latent_channels: int
    factor: int
    """By which the VAE shrinks."""
    sizes: tuple[int, ...]
    """Edges of the pictures in pixels, one or more."""

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """Of the latents of one picture with that edge: channels, height, width."""
        return self.latent_channels, size // self.factor, size // self.factor


def load_networks(options: Options) -> Networks:
    """Load the checkpoint and cut the student.

    Raises UnfitTeacher or UnfitOptions, and the engine's CheckpointError for a folder that cannot be loaded.
    """
    folder = options.checkpoint
    inspect(folder)
    noise = DDPMScheduler.from_config(load_scheduler_config(folder))
    if noise.config.prediction_type not in _PREDICTIONS:
        raise UnfitTeacher(f"{folder}: predicts {noise.config.prediction_type}; known: {', '.join(_PREDICTIONS)}")
    channels, factor = latent_shape(folder)
    unet = load_unet(folder, _CPU)
    sizes = (options.size or unet.config.sample_size * factor, *options.more_sizes)
    for size in sizes:
        if size < 1 or size % factor:
            raise UnfitOptions(f"size is {size}; this checkpoint's VAE needs a multiple of {factor}")
    student = unet if options.student == "same" else make_student(unet, options.student)
    if options.fresh:
        torch.manual_seed(options.seed)
        student = UNet2DConditionModel.from_config(student.config).to(memory_format=torch.channels_last)
    if options.start:
        student = _load_like(student, options.start, "start")
    teacher = unet if options.taught else None
    other = options.more_sizes_teacher
    text_encoder = load_text_encoder(folder, _CPU)
    if options.train_text_encoder:
        text_encoder.train().requires_grad_(True)
    pairs = () if options.student == "same" else block_pairs(len(unet.down_blocks), options.student)
    return Networks(
        student=student.train().requires_grad_(True),
        teacher=teacher,
        more_sizes_teacher=_load_like(unet, other, "more-sizes-teacher").requires_grad_(False) if other else teacher,
        pairs=pairs if options.taught else (),
        text_encoder=text_encoder,
        tokenizer=load_tokenizer(folder),
        vae=AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True).eval().requires_grad_(False),
        noise=noise,
        latent_channels=channels,
        factor=factor,
        sizes=sizes,
    )


def _load_like(expected: UNet2DConditionModel, folder: Path, option: str) -> UNet2DConditionModel:
    """The U-Net of a folder, if it has the same weights by name and shape. Raises UnfitOptions."""
    inspect(folder)
    loaded = load_unet(folder, _CPU)
    ours, theirs = ({name: weight.shape for name, weight in net.state_dict().items()} for net in (expected, loaded))
    if ours != theirs:
        raise UnfitOptions(f"{option}: the U-Net of {folder} has other blocks than the one whose place it takes")
    return loaded


def copy_components(checkpoint: Path, out: Path, *, trained: frozenset[str]) -> None:
    """Begin the checkpoint folder `out` with all of `checkpoint`'s components but the trained ones, and its licence."""
    index: Mapping[str, Any] = json.loads((checkpoint / "model_index.json").read_text(encoding="utf-8"))
    names = {name for name, kind in index.items() if isinstance(kind, list) and kind[0] is not None} - trained
    for name in sorted(names):
        shutil.copytree(checkpoint / name, out / name, dirs_exist_ok=True)
    for licence in checkpoint.glob("LICENSE*"):
        shutil.copy2(licence, out)
    shutil.copy2(checkpoint / "model_index.json", out)


def write_component(network: UNet2DConditionModel | AutoencoderKL | CLIPTextModel, folder: Path) -> None:
    """Write a network's configuration and weights, float32; each file is replaced whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as directory:
        network.save_pretrained(directory, safe_serialization=True)
        config = Path(directory, "config.json")
        values = json.loads(config.read_text(encoding="utf-8"))
        values.pop("_name_or_path", None)  # where this machine had the first weights
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for file in Path(directory).iterdir():
            file.replace(folder / file.name)
