"""Latents to pixels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tiny_sd_engine.device import Device, select_device
from tiny_sd_engine.errors import EngineError
from tiny_sd_engine.vae import VaeDecoder


@pytest.fixture(scope="module")
def decoder(checkpoint: Path) -> VaeDecoder:
    return VaeDecoder(checkpoint, select_device("CPU", precision="fp32"))


def latents(decoder: VaeDecoder, height: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(decoder.channels, height, width, generator=torch.Generator().manual_seed(seed))


def test_pictures_of_several_sizes_come_in_the_order_of_their_latents(decoder: VaeDecoder) -> None:
    many = [latents(decoder, *size, seed) for seed, size in enumerate([(4, 4), (4, 8), (4, 4), (8, 4)])]
    together = decoder.decode(many)
    assert [picture.dtype for picture in together] == [np.uint8] * 4
    assert [picture.shape[1] / picture.shape[0] for picture in together] == [1, 2, 1, 0.5]
    for picture, own in zip(together, many, strict=True):
        assert np.array_equal(picture, decoder.decode([own])[0])


def test_a_call_holds_as_many_pictures_as_make_up_its_pixels_and_at_least_one(
    decoder: VaeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[int]] = []
    call = decoder._call

    def counted(many: torch.Tensor) -> NDArray[np.uint8]:
        calls.append(list(many.shape))
        return call(many)

    monkeypatch.setattr(decoder, "_call", counted)
    pixels = 2 * (4 * decoder._pixels_per_latent) ** 2
    monkeypatch.setattr(Device, "pixels_per_decode", property(lambda _device: pixels))
    decoder.decode([latents(decoder, *size, 0) for size in [(4, 4)] * 3 + [(8, 8)] * 2])
    assert [shape[0] for shape in calls] == [2, 1, 1, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_picture_is_an_error(decoder: VaeDecoder, value: float) -> None:
    broken = latents(decoder, 4, 4, 0)
    broken[0, 1, 2] = value
    with pytest.raises(EngineError, match="not finite"):
        decoder.decode([broken])
