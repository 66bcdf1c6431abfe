"""The whole recipe of the built-in checkpoint, with a step or two of everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import demo_checkpoint
from demo_recipe import autoencoder, recipe
from tiny_sd_client.parameters import parse
from tiny_sd_engine.pipeline import Pipeline


@pytest.mark.usefixtures("fresh_accelerator")
def test_the_recipe_makes_a_checkpoint_that_can_be_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipe, "STEPS", dict.fromkeys(recipe.STEPS, 2))
    monkeypatch.setattr(recipe, "_PICTURES", "drawings:8")
    monkeypatch.setattr(recipe, "_MORE_SIZES", (640,))
    monkeypatch.setattr(recipe, "CURVES", tmp_path / "curves")
    monkeypatch.setattr(autoencoder, "_MEASURED", 4)
    monkeypatch.setattr(autoencoder, "_BATCHES", {128: 1, 256: 1, 512: 1})
    places = [f"--work={tmp_path / 'work'}", f"--out={tmp_path / 'made'}"]
    assert demo_checkpoint.main(places) == 0, capsys.readouterr().err
    generation = Pipeline.from_checkpoint(tmp_path / "made").generate(parse({"prompt": "a red circle", "seed": 1}))
    assert generation.pixels[0].shape == (512, 512, 3)
    assert (tmp_path / "made" / "manifest.json").is_file()
    seconds = json.loads((tmp_path / "curves" / "seconds.json").read_text())
    assert {"text encoder", "decoder", "256 pixels", "512 pixels", "guided", "no teacher"} <= seconds.keys()
    assert (tmp_path / "work" / "whole" / "teacher" / "vae").is_dir()
    assert all((tmp_path / "curves" / f"{name}.png").is_file() for name in ("teacher", "student", "ablation"))
