"""The U-Nets that the built-in checkpoint is trained from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from demo_recipe import autoencoder
from demo_recipe.networks import write_untrained
from distillation.surgery import make_student

ROWS = 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    AutoencoderKL(**autoencoder.ARCHITECTURE).save_pretrained(folder / "vae")
    write_untrained(folder / "vae", folder / "untrained", seed=1)
    return folder / "untrained"


def predictions(unet: UNet2DConditionModel) -> torch.Tensor:
    chance = torch.Generator().manual_seed(2)
    latents = torch.randn(ROWS, unet.config.in_channels, 16, 16, generator=chance)
    embeddings = torch.randn(ROWS, 77, unet.config.cross_attention_dim, generator=chance)
    with torch.inference_mode():
        made: torch.Tensor = unet(latents, torch.tensor([10, 900]), embeddings).sample
    return made


def test_the_same_seed_gives_the_same_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    write_untrained(checkpoint / "vae", tmp_path / "again", seed=1)
    files = {path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()}
    assert all((checkpoint / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)


def test_the_student_is_told_of_the_pooled_text_as_well_and_has_55_percent_fewer_parameters(checkpoint: Path) -> None:
    teacher = UNet2DConditionModel.from_pretrained(checkpoint / "unet", local_files_only=True).eval()
    student = make_student(teacher, "tiny")
    assert student.num_parameters() < 0.45 * teacher.num_parameters()
    before = predictions(student)
    assert before.shape == predictions(teacher).shape
    with torch.no_grad():
        student.add_embedding.norm2.bias.add_(1)
    assert not torch.equal(predictions(student), before)
