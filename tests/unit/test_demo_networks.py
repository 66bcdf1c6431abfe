"""The U-Nets that the built-in checkpoint is trained from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from demo_recipe import autoencoder
from demo_recipe.networks import write_pooled, write_untrained
from distillation.surgery import make_student

ROWS = 2


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Before and after the U-Net is told of the pooled text."""
    folder = tmp_path_factory.mktemp("recipe")
    AutoencoderKL(**autoencoder.ARCHITECTURE).save_pretrained(folder / "vae")
    write_untrained(folder / "vae", folder / "before", seed=1)
    write_pooled(folder / "before", folder / "after", seed=1)
    return folder / "before", folder / "after"


def predictions(unet: UNet2DConditionModel) -> torch.Tensor:
    chance = torch.Generator().manual_seed(2)
    latents = torch.randn(ROWS, unet.config.in_channels, 16, 16, generator=chance)
    embeddings = torch.randn(ROWS, 77, unet.config.cross_attention_dim, generator=chance)
    with torch.inference_mode():
        made: torch.Tensor = unet(latents, torch.tensor([10, 900]), embeddings).sample
    return made


def load(checkpoint: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(checkpoint / "unet", local_files_only=True).eval()


def test_being_told_of_the_pooled_text_changes_nothing_at_first(checkpoints: tuple[Path, Path]) -> None:
    before, after = map(load, checkpoints)
    assert torch.equal(predictions(before), predictions(after))
    assert after.config.addition_embed_type == "text"
    with torch.no_grad():
        after.add_embedding.norm2.weight.fill_(1)
    assert not torch.equal(predictions(before), predictions(after))


def test_the_rest_of_the_checkpoint_is_kept(checkpoints: tuple[Path, Path]) -> None:
    before, after = checkpoints
    files = {path.relative_to(before) for path in before.rglob("*") if path.is_file()}
    assert files == {path.relative_to(after) for path in after.rglob("*") if path.is_file()}
    for file in files:
        assert file.parts[0] == "unet" or (before / file).read_bytes() == (after / file).read_bytes()


def test_the_student_is_told_as_well_and_has_55_percent_fewer_parameters(checkpoints: tuple[Path, Path]) -> None:
    teacher = load(checkpoints[1])
    student = make_student(teacher, "tiny")
    assert student.config.addition_embed_type == "text"
    assert student.num_parameters() < 0.45 * teacher.num_parameters()
    assert predictions(student).shape == predictions(teacher).shape
