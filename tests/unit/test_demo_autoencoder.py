"""The training of the built-in checkpoint's autoencoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from demo_checkpoint import main
from demo_recipe import autoencoder
from demo_recipe.autoencoder import ARCHITECTURE, Plan, centre, train
from drawings import draw, random_scene


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "_BATCHES", {64: 2, 128: 1})
    monkeypatch.setattr(autoencoder, "_SHARES", (0.5, 0.5))
    monkeypatch.setattr(autoencoder, "_FINISHING_SHARES", (0.0, 1.0))
    monkeypatch.setattr(autoencoder, "_MEASURED", 8)


class Enough(Exception):
    pass


def test_a_run_that_was_broken_off_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    plan = Plan(steps=6, warm_up=2, save_every=2)
    at_once: dict[int, float] = {}
    whole = train(plan, tmp_path / "whole", at_once.__setitem__)

    def until_the_fifth(step: int, loss: float) -> None:
        if step == 5:
            raise Enough

    with pytest.raises(Enough):
        train(plan, tmp_path / "broken", until_the_fifth)
    taken_up: dict[int, float] = {}
    resumed = train(plan, tmp_path / "broken", taken_up.__setitem__)
    assert sorted(taken_up) == [5, 6]
    assert taken_up == pytest.approx({step: at_once[step] for step in (5, 6)}, rel=1e-6)
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_centring_gives_latents_of_mean_0_and_deviation_1_and_leaves_the_pictures_alone() -> None:
    torch.manual_seed(3)
    model = AutoencoderKL(**ARCHITECTURE).eval()
    chance = np.random.default_rng([0, 1])
    drawings = np.stack([draw(random_scene(chance, "train", landscapes=0.25), 512, 512) for _ in range(8)])
    pictures = torch.from_numpy(drawings).movedim(-1, 1).float() / 127.5 - 1
    with torch.inference_mode():
        before = model.decode(model.encode(pictures[:1]).latent_dist.mean).sample
        spread = model.encode(pictures[:1]).latent_dist.std
        raw = model.encode(pictures).latent_dist.mean
    centre(model, seed=0)
    with torch.inference_mode():
        latents = model.encode(pictures).latent_dist
        after = model.decode(latents.mean[:1]).sample
    torch.testing.assert_close(latents.mean.mean((0, 2, 3)), torch.zeros(4), atol=0.05, rtol=0)
    torch.testing.assert_close(latents.mean.std((0, 2, 3)), torch.ones(4), atol=0.05, rtol=0)
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(latents.std[:1], spread / raw.std((0, 2, 3))[None, :, None, None], atol=0.02, rtol=0.05)


def test_the_command_writes_an_autoencoder_that_diffusers_loads(tmp_path: Path) -> None:
    assert main(["autoencoder", "--out", str(tmp_path), "--steps", "2"]) == 0
    model = AutoencoderKL.from_pretrained(tmp_path / "vae")
    with torch.inference_mode():
        assert model.decode(torch.zeros(1, 4, 4, 4)).sample.shape == (1, 3, 64, 64)
