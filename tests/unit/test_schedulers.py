"""A compiled schedule does what diffusers' own scheduler does."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from booking import book

from reference import REFERENCE_SCHEDULERS
from tiny_sd_client.parameters import Scheduler
from tiny_sd_engine.architectures import SCHEDULER
from tiny_sd_engine.device import select_device
from tiny_sd_engine.errors import InvalidInput
from tiny_sd_engine.flight import Image, Job, Task
from tiny_sd_engine.schedulers import (
    HISTORY,
    NOISE_SLOT,
    SCHEDULERS,
    Schedule,
    build,
    compile_schedule,
    latents_slot,
    prediction_slot,
)
from tiny_sd_engine.slab import Slab

# diffusers has no "sample" prediction for these.
EPSILON_AND_V_ONLY = {"Euler a", "DPM2 Karras", "DPM2 a Karras", "PNDM"}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SHAPE = (1, 4, 8, 8)
# Coefficients are float32, and so is what most of diffusers' schedulers compute with: each step rounds by 6e-8, and the
# errors of up to 199 evaluations come to 1e-6 at worst.
LARGEST_ERROR = 1e-5
CASES = [
    (name, prediction_type)
    for name in REFERENCE_SCHEDULERS
    for prediction_type in PREDICTIONS
    if not (prediction_type == "sample" and name in EPSILON_AND_V_ONLY)
]

# compile_schedule is slow for LMS and DPM2, and every test below wants the same schedules.
compiled = cache(lambda name, steps, kind: compile_schedule(name, steps, {**SCHEDULER, "prediction_type": kind}))


@dataclass
class Run:
    """One picture's way under a scheduler, with predictions that are fixed in advance."""

    inputs: list[torch.Tensor]
    """What the U-Net is shown at each evaluation."""
    latents: torch.Tensor
    """Where it ends."""


def prediction(evaluation: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1000 + evaluation), dtype=torch.float64)


@cache
def prepared(name: str, steps: int, prediction_type: str) -> Any:
    """diffusers' scheduler before its first step."""
    kind, overrides = REFERENCE_SCHEDULERS[name]
    scheduler = kind.from_config({**SCHEDULER, "prediction_type": prediction_type}, **overrides)
    scheduler.set_timesteps(steps)
    return scheduler


def run_diffusers(untouched: Any, dtype: torch.dtype) -> Run:
    scheduler = copy.deepcopy(untouched)
    generator = torch.Generator().manual_seed(7)
    more = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    latents = torch.randn(SHAPE, generator=generator, dtype=dtype) * scheduler.init_noise_sigma
    inputs = []
    for evaluation, timestep in enumerate(scheduler.timesteps):
        inputs.append(scheduler.scale_model_input(latents, timestep))
        latents = scheduler.step(prediction(evaluation).to(dtype), timestep, latents, **more).prev_sample
    return Run(inputs, latents)


def run_table(schedule: Schedule, dtype: torch.dtype) -> Run:
    generator = torch.Generator().manual_seed(7)
    history = torch.full((HISTORY, *SHAPE), 1e6, dtype=dtype)  # what was never written must not be read
    history[latents_slot(0)] = torch.randn(SHAPE, generator=generator, dtype=dtype) * schedule.initial_scale
    inputs = []
    for evaluation in range(len(schedule)):
        coefficients = schedule.coefficients[evaluation].to(dtype)
        inputs.append(history[latents_slot(evaluation)] * schedule.input_scale[evaluation])
        history[prediction_slot(evaluation)] = prediction(evaluation).to(dtype)
        if schedule.draws_noise[evaluation]:
            history[NOISE_SLOT] = torch.randn(SHAPE, generator=generator, dtype=dtype)
        history[latents_slot(evaluation + 1)] = torch.tensordot(coefficients, history, dims=1)
    return Run(inputs, history[latents_slot(len(schedule))])


@pytest.mark.parametrize(
    ("steps", "dtype"),
    [(2, torch.float64), (20, torch.float64), (50, torch.float64), (100, torch.float64), (20, torch.float32)],
    ids=str,
)
@pytest.mark.parametrize(("name", "prediction_type"), CASES)
def test_a_table_goes_where_diffusers_goes(name: str, prediction_type: str, steps: int, dtype: torch.dtype) -> None:
    schedule = compiled(name, steps, prediction_type)
    scheduler = prepared(name, steps, prediction_type)
    assert torch.equal(schedule.timesteps, scheduler.timesteps.float())
    assert schedule.initial_scale == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-6)
    theirs = run_diffusers(scheduler, dtype)
    ours = run_table(schedule, dtype)
    for mine, other in zip([*ours.inputs, ours.latents], [*theirs.inputs, theirs.latents], strict=True):
        assert (mine - other).abs().max() <= LARGEST_ERROR * other.abs().max()


@pytest.mark.parametrize(("name", "prediction_type"), CASES)
def test_coefficients_stay_small_enough_for_float32(name: str, prediction_type: str) -> None:
    for steps in (20, 50, 100):
        coefficients = compiled(name, steps, prediction_type).coefficients
        assert coefficients.shape[1] == HISTORY
        assert coefficients.isfinite().all()
        assert 0.5 < coefficients.abs().max() <= 20


@pytest.mark.parametrize("name", REFERENCE_SCHEDULERS)
def test_a_step_evaluates_the_unet_as_often_as_the_scheduler_wants(name: str) -> None:
    expected = {"Heun": 39, "DPM2 Karras": 39, "DPM2 a Karras": 39, "PNDM": 21}.get(name, 20)
    schedule = compiled(name, 20, "epsilon")
    assert len(schedule) == expected
    assert {len(part) for part in (schedule.timesteps, schedule.input_scale, schedule.coefficients)} == {expected}


@pytest.mark.parametrize("name", REFERENCE_SCHEDULERS)
def test_noise_is_drawn_by_the_ancestral_schedulers_and_ddpm_alone(name: str) -> None:
    schedule = compiled(name, 20, "epsilon")
    assert any(schedule.draws_noise) == (name in {"DDPM", "Euler a", "DPM2 a Karras"})
    unused = [not drawn for drawn in schedule.draws_noise]
    assert schedule.coefficients[unused, NOISE_SLOT].abs().sum() < 1e-12, "solving for them rounds in float64"


@pytest.mark.parametrize("name", REFERENCE_SCHEDULERS)
def test_nothing_is_read_before_it_is_written(name: str) -> None:
    schedule = compiled(name, 20, "epsilon")
    for evaluation in range(6):
        written = {NOISE_SLOT}
        written |= {latents_slot(past) for past in range(evaluation + 1)}
        written |= {prediction_slot(past) for past in range(evaluation + 1)}
        read = set(schedule.coefficients[evaluation].nonzero().flatten().tolist())
        assert read <= written


def test_every_documented_name_has_a_table() -> None:
    assert set(SCHEDULERS) == {scheduler.value for scheduler in Scheduler} == set(REFERENCE_SCHEDULERS)


@pytest.mark.parametrize("name", ["", "euler", "Euler A", "DPM++", "x" * 5000])
def test_an_unknown_name_is_refused_with_all_that_are_known(name: str) -> None:
    for refused in (lambda: compile_schedule(name, 20, SCHEDULER), lambda: build(name, SCHEDULER)):
        with pytest.raises(InvalidInput) as caught:
            refused()
        assert caught.value.parameter == "scheduler"
        assert str(caught.value) == f"scheduler: got {name[:40]!r}; allowed: {', '.join(SCHEDULERS)}"


def test_compiling_leaves_the_configuration_and_the_generators_alone() -> None:
    config = dict(SCHEDULER)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    compile_schedule("Euler a", 20, config)
    assert torch.equal(torch.rand(1), expected)
    assert config == SCHEDULER


# What the picture looks like on the way: the estimate of the clean latents


def diffusers_estimate(scheduler: Any, stepped: Any) -> torch.Tensor:
    """What a scheduler of diffusers took the clean latents to be in the step that it has just made."""
    estimate: torch.Tensor | None = getattr(stepped, "pred_original_sample", None)
    return scheduler.model_outputs[-1] if estimate is None else estimate


@pytest.mark.parametrize("steps", [2, 20])
@pytest.mark.parametrize(("name", "prediction_type"), [case for case in CASES if case[0] != "PNDM"])
def test_the_clean_latents_are_estimated_as_diffusers_does_it(name: str, prediction_type: str, steps: int) -> None:
    """PNDM's scheduler makes no estimate."""
    schedule = compiled(name, steps, prediction_type)
    scheduler = copy.deepcopy(prepared(name, steps, prediction_type))
    # Both DPM2 tell the U-Net whole timesteps, and reckon with noise levels in between.
    tolerance = 1e-2 if name.startswith("DPM2") else 1e-4
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    latents *= scheduler.init_noise_sigma
    for evaluation, timestep in enumerate(scheduler.timesteps):
        told = prediction(evaluation)
        scheduler.scale_model_input(latents, timestep)
        stepped = scheduler.step(told, timestep, latents)
        theirs = diffusers_estimate(scheduler, stepped)
        by_latents, by_prediction = schedule.estimates[evaluation].double()
        ours = by_latents * latents + by_prediction * told
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max(), evaluation
        latents = stepped.prev_sample


CLEAN = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
"""The latents of a picture."""


def starting(schedule: Schedule) -> Job:
    """A job of one image that has not been to the U-Net yet."""
    text = torch.zeros(1, 1)
    task = Task(text, text, "any", 20, 1.0, [5], width=64, height=64)
    return Job(task, schedule, Slab((4, 8, 8), (1, 1), len(schedule), select_device("CPU", precision="fp32")))


def levels(image: Image) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the picture and of the noise at the timestep that the U-Net is told; those in between go by log sigma."""
    alphas = prepared("DDIM", 2, "epsilon").alphas_cumprod.double()
    timestep = image.job.schedule.timesteps[image.evaluation].double()
    sigmas = ((1 - alphas) / alphas).sqrt().log()
    sigma = torch.lerp(sigmas[int(timestep.floor())], sigmas[int(timestep.ceil())], timestep % 1).exp()
    return 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()


def noise_in(image: Image) -> torch.Tensor:
    """What the latents hold beside the picture, of variance 1."""
    signal, sigma = levels(image)
    seen = image.latents.double() * image.job.schedule.input_scale[image.evaluation]
    return (seen - signal * CLEAN) / sigma


@pytest.mark.parametrize(("name", "prediction_type"), CASES)
def test_where_the_unet_sees_just_the_noise_every_estimate_is_the_picture(name: str, prediction_type: str) -> None:
    job = starting(compiled(name, 20, prediction_type))
    (image,) = job.images
    while not image.finished:
        noise, (signal, sigma) = noise_in(image), levels(image)
        told = {"epsilon": noise, "sample": CLEAN, "v_prediction": signal * noise - sigma * CLEAN}[prediction_type]
        book(image, told.float())
        if not image.finished:
            assert torch.allclose(image.estimate(), CLEAN, atol=1e-4), image.evaluation
    assert torch.equal(image.estimate(), image.latents)


@pytest.mark.parametrize("name", sorted(set(REFERENCE_SCHEDULERS) - {"DDPM", "Euler a", "DPM2 a Karras"}))
def test_where_the_unet_always_names_the_first_noise_every_estimate_is_the_picture(name: str) -> None:
    """So the noise levels of the estimates are those that the scheduler itself goes by."""
    # Spaced otherwise, DDIM and PNDM do not step to the noise level of the next timestep.
    job = starting(compile_schedule(name, 20, {**SCHEDULER, "timestep_spacing": "leading"}))
    (image,) = job.images
    first = noise_in(image).float()
    tolerance = 3e-2 if name.startswith("DPM2") else 1e-4
    while not image.finished:
        book(image, first)
        if not image.finished:
            assert torch.allclose(image.estimate(), CLEAN, atol=tolerance), image.evaluation
    # What noise is left at the last timestep, if any, is little.
    assert torch.allclose(image.latents, CLEAN, atol=0.2)


def test_the_last_estimates_are_near_the_final_latents_whatever_the_unet_says() -> None:
    job = starting(compiled("UniPC", 50, "epsilon"))
    (image,) = job.images
    estimates = []
    while not image.finished:
        book(image, prediction(image.evaluation % 3)[0].float())
        estimates.append(image.estimate().clone())
    away = [float((estimate - image.latents).abs().mean()) for estimate in estimates]
    assert away[-1] == 0
    assert max(away[-5:]) < min(away[:5]) / 3
