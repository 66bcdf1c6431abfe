"""Previews straight from latents: what the decoder would show, at a pixel for each latent."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate

from tiny_sd_engine.denoiser import Denoiser
from tiny_sd_engine.device import select_device
from tiny_sd_engine.flight import Task
from tiny_sd_engine.previews import Previewer
from tiny_sd_engine.vae import VaeDecoder

Pixels = NDArray[np.uint8]
"""[height, width, 3]."""
Colours = NDArray[np.float64]
"""[height, width, 3], 0 to 255."""


class LinearVae:
    """A decoder whose colours are a linear map of the latents, with a pattern upon them that averages out."""

    def __init__(self, channels: int, pixels_per_latent: int = 8) -> None:
        self.channels = channels
        self._pixels = pixels_per_latent
        self._map = torch.randn(3, channels, generator=torch.Generator().manual_seed(2)) * 30 / channels**0.5
        self._offset = torch.tensor([100.0, 128.0, 150.0])

    def colours(self, latents: torch.Tensor) -> torch.Tensor:
        """[3, h, w] of [channels, h, w]."""
        return torch.einsum("oc,chw->ohw", self._map, latents) + self._offset[:, None, None]

    def decode(self, latents: Sequence[torch.Tensor]) -> list[Pixels]:
        """One [height, width, 3] uint8 per image."""
        pictures = []
        for image in latents:
            each = (1, self._pixels, self._pixels)
            colours = torch.kron(self.colours(image), torch.ones(each))
            stripes = torch.tensor([20.0, -20.0]).repeat(colours.shape[-1] // 2)
            bytes_ = (colours + stripes).clamp(0, 255).round().to(torch.uint8)
            pictures.append(bytes_.permute(1, 2, 0).contiguous().numpy())
        return pictures


def linear(channels: int = 4, pixels_per_latent: int = 8) -> tuple[LinearVae, Previewer]:
    vae = LinearVae(channels, pixels_per_latent)
    return vae, Previewer(cast(VaeDecoder, vae))


@pytest.fixture(scope="module")
def vae(checkpoint: Path) -> VaeDecoder:
    return VaeDecoder(checkpoint, select_device("CPU", precision="fp32"))


@pytest.fixture(scope="module")
def previewer(vae: VaeDecoder) -> Previewer:
    return Previewer(vae)


def opened(file: bytes) -> Colours:
    """[h, w, 3] float64."""
    return np.asarray(Image.open(io.BytesIO(file)), np.float64)


def shrunk(picture: Pixels, height: int, width: int) -> Colours:
    """A picture with the average colour of each of its parts. [height, width, 3] float64."""
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX), np.float64)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("channels", "pixels_per_latent"), [(4, 8), (4, 2), (1, 8), (16, 4)])
def test_where_the_decoder_is_linear_a_preview_is_the_picture_made_small(channels: int, pixels_per_latent: int) -> None:
    vae, previewer = linear(channels, pixels_per_latent)
    latents = interpolate(noise(1, 1, channels, 4, 4), (32, 48), mode="bilinear")[0]
    (picture,) = vae.decode([latents])
    assert picture.std() > 20
    difference = np.abs(opened(previewer.preview(latents)) - shrunk(picture, 32, 48))
    assert difference.mean() < 1.5, "nearly all of it JPEG's doing"
    assert difference.max() <= 10


def test_colours_beyond_black_and_white_stay_there() -> None:
    vae, previewer = linear()
    latents = interpolate(noise(1, 1, 4, 2, 2), (16, 16), mode="bilinear")[0] * 40
    colours = vae.colours(latents).permute(1, 2, 0).numpy()
    seen = opened(previewer.preview(latents))
    assert (colours < -100).any()
    assert (colours > 355).any()
    assert seen[colours < -100].max() < 60
    assert seen[colours > 355].min() > 195


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 8), (5, 31), (1, 1), (128, 96)])
def test_a_preview_is_a_jpeg_of_a_pixel_for_each_latent(previewer: Previewer, height: int, width: int) -> None:
    file = previewer.preview(noise(1, 4, height, width))
    with Image.open(io.BytesIO(file)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (width, height))
    assert len(file) < 1000 + 3 * height * width


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_latents_gone_astray_have_a_preview_too(previewer: Previewer, value: float) -> None:
    """Whoever makes previews also denoises others' pictures."""
    assert opened(previewer.preview(torch.full((4, 8, 8), value))).shape == (8, 8, 3)


def test_the_same_checkpoint_and_latents_have_the_same_preview(vae: VaeDecoder, previewer: Previewer) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    latents = noise(1, 4, 16, 16)
    assert Previewer(vae).preview(latents) == previewer.preview(latents)
    assert torch.equal(torch.rand(1), expected), "what others draw is left alone"


def test_making_a_preview_leaves_the_latents_alone(previewer: Previewer) -> None:
    latents = noise(1, 4, 16, 16) * 3
    before = latents.clone()
    previewer.preview(latents)
    assert torch.equal(latents, before)


def likeness(preview: Colours, picture: Colours) -> float:
    """Correlation of two pictures' colours, apart from their averages."""
    parts = [(each - each.mean((0, 1))).ravel() for each in (preview, picture)]
    return float(np.corrcoef(*parts)[0, 1])


def test_a_preview_is_more_like_its_own_picture_than_like_those_of_other_seeds(
    checkpoint: Path, vae: VaeDecoder, previewer: Previewer
) -> None:
    """Even for random weights, whose decoder makes most of a picture up; and half way through already."""
    denoiser = Denoiser(checkpoint, select_device("CPU", precision="fp32"))
    text, seeds = noise(1, 77, 48), range(8)
    job = denoiser.job("key", lambda: Task(text, -text, "UniPC", 6, 4.0, seeds, width=256, height=256))
    while job.step < 3:
        denoiser.run([job], 0.0)
    half_way = job.estimate()
    denoiser.run_to_end([job])
    pictures = [shrunk(picture, 16, 16) for picture in vae.decode(list(job.latents()))]
    for latents in (half_way, job.estimate()):
        previews = [opened(previewer.preview(image)) for image in latents]
        alike = np.array([[likeness(preview, picture) for picture in pictures] for preview in previews])
        assert (alike.argmax(axis=1) == seeds).sum() >= 7
        others = alike[~np.eye(len(seeds), dtype=bool)]
        assert np.diag(alike).mean() > 0.07 > 3 * abs(others.mean())
