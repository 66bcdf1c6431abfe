"""The training of the built-in checkpoint's autoencoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from demo_recipe import autoencoder
from demo_recipe.autoencoder import ARCHITECTURE, Plan, features, set_encoder, train
from distillation.record import read
from drawings import draw, random_scene

PLAN = Plan(steps=6, sizes={64: 0.5, 128: 0.5}, warm_up=2, save_every=2)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "_BATCHES", {64: 2, 128: 1})
    monkeypatch.setattr(autoencoder, "_MEASURED", 8)


def untrained() -> AutoencoderKL:
    torch.manual_seed(3)
    return AutoencoderKL(**ARCHITECTURE)


class Enough(Exception):
    pass


def drawings(size: int, count: int = 4) -> torch.Tensor:
    chance = np.random.default_rng(size)
    pixels = np.stack([draw(random_scene(chance, "train"), size, size) for _ in range(count)])
    return torch.from_numpy(pixels).movedim(-1, 1).float() / 127.5 - 1


def test_a_run_that_was_broken_off_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    at_once: dict[int, float] = {}
    whole = untrained()
    train(whole, PLAN, tmp_path / "whole", at_once.__setitem__)

    def until_the_fifth(step: int, loss: float) -> None:
        if step == 5:
            raise Enough

    with pytest.raises(Enough):
        train(untrained(), PLAN, tmp_path / "broken", until_the_fifth)
    taken_up: dict[int, float] = {}
    resumed = untrained()
    train(resumed, PLAN, tmp_path / "broken", taken_up.__setitem__)
    assert sorted(taken_up) == [5, 6]
    recorded = {entry.step: entry.loss for entry in read(tmp_path / "broken" / "losses.jsonl")}
    assert recorded == pytest.approx(at_once, rel=1e-6)
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_training_changes_the_decoder_and_leaves_the_latents_alone(tmp_path: Path) -> None:
    model, before = untrained(), untrained().state_dict()
    train(model, PLAN, tmp_path, lambda *_: None)
    changed = {name.split(".")[0] for name, weights in model.state_dict().items() if not weights.equal(before[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_the_features_are_brightness_contrasts_and_the_differences_of_halves() -> None:
    pictures = torch.zeros(1, 3, 16, 16)
    pictures[:, 0, :, :8] = 1.0  # red on the left
    pictures[:, :, :, 8:] = torch.tensor([-1.0, -1.0, 1.0])[None, :, None, None]  # blue on the right
    left, right = (0.65, 1.0, -0.5), (-0.5, 0.0, 2.0)
    means = [(a + b) / 2 for a, b in zip(left, right, strict=True)]
    torch.testing.assert_close(features(pictures).flatten(), torch.tensor([*means, (0.65 + 0.5) / 2, 0.0]))
    turned = features(pictures.transpose(2, 3)).flatten()
    torch.testing.assert_close(turned, torch.tensor([*means, 0.0, (0.65 + 0.5) / 2]))


@pytest.mark.parametrize("size", [64, 256, 768])
def test_the_encoder_tells_the_features_whatever_the_size_and_the_neighbours(size: int) -> None:
    model, pictures = untrained().eval(), drawings(size)
    set_encoder(model, seed=0)
    with torch.inference_mode():
        told = model.encode(pictures).latent_dist
        alone = model.encode(pictures[:1]).latent_dist
        expected = model.quant_conv(features(pictures).repeat(1, 2, 1, 1)).chunk(2, dim=1)[0]
    torch.testing.assert_close(told.mean, expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(alone.mean, told.mean[:1], atol=2e-4, rtol=0)
    torch.testing.assert_close(told.std, torch.full_like(told.std, 0.05))


def test_latents_have_mean_0_and_deviation_1_and_halves_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "_MEASURED", 100)
    model = untrained().eval()
    set_encoder(model, seed=0)
    with torch.inference_mode():
        latents = model.encode(drawings(256, 40)).latent_dist.mean
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(5), atol=0.3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.tensor([1.0, 1.0, 1.0, 0.4, 0.4]), atol=0.2, rtol=0)
