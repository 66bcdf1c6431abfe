"""The engine makes the pictures that diffusers makes, to 1/255, in float32."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from reference import REFERENCE_SCHEDULERS, Reference, largest_difference
from tiny_sd_client.parameters import Scheduler, parse
from tiny_sd_engine.pipeline import Pipeline

SMALL = (96, 128, 160)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Pipeline:
    return Pipeline.from_checkpoint(checkpoint, precision="fp32", device="CPU")


def test_the_reference_covers_every_documented_scheduler() -> None:
    assert set(REFERENCE_SCHEDULERS) == {scheduler.value for scheduler in Scheduler}


@pytest.mark.parametrize("scheduler", REFERENCE_SCHEDULERS)
def test_pictures_are_those_of_diffusers(scheduler: str, pipeline: Pipeline, reference: Reference) -> None:
    grid = itertools.product((7.5, 1.0), (1, 3), (20, 37), ((128, 128), (160, 96)))
    for guidance_scale, samples, steps, (width, height) in grid:
        parameters = parse(
            {
                "prompt": "a small red circle on blue",
                "negative_prompt": "blurry",
                "scheduler": scheduler,
                "num_inference_steps": steps,
                "guidance_scale": guidance_scale,
                "samples": samples,
                "seed": 516797155652,
                "img_width": width,
                "img_height": height,
            },
            sizes=SMALL,
        )
        ours = pipeline.generate(parameters).pixels
        theirs = reference.pixels(parameters)
        assert len(ours) == len(theirs) == samples
        for mine, other in zip(ours, theirs, strict=True):
            assert other.std() > 10, "a flat or saturated picture would hide differences"
            assert np.isin(other, (0, 255)).mean() < 0.2
            assert largest_difference(mine, other) <= 1, parameters
