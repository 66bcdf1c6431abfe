"""Schedulers as data: diffusers' own schedulers, compiled into tables of coefficients.

Once the name and the number of steps are fixed, every scheduler is linear: the next latents are a weighted sum of a
few earlier latents, a few earlier predictions of the U-Net and the noise drawn in this step. Running diffusers'
scheduler once on basis vectors hands back the weights, and from then on a step of any scheduler is one small product.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from tiny_sd_engine.errors import EngineError, InvalidInput

# What a step may look back on. Four latents and five predictions are the fewest that express all schedulers below for
# all prediction types: LMS with v-prediction needs the former, PNDM (which skips one prediction) the latter.
LATENTS_KEPT = 4
PREDICTIONS_KEPT = 5
HISTORY = LATENTS_KEPT + PREDICTIONS_KEPT + 1
NOISE_SLOT = HISTORY - 1
# The largest error of a table, relative to the largest coefficient: float32 schedulers reach 2e-6.
_TOLERANCE = 1e-5
# Where a checkpoint's noise schedule ends without any signal, as diffusers' own schedulers have it.
_LEAST_ALPHA = 2.0**-24

_DPM_MULTI = ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2})
_DPM_SINGLE = ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2})
SCHEDULERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "DDPM": ("DDPMScheduler", {"clip_sample": False}),
    "DPM Multi": _DPM_MULTI,
    "dpmpp_2m": _DPM_MULTI,
    "DPM Single": _DPM_SINGLE,
    "dpmpp_sde_ancestral": _DPM_SINGLE,
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "DPM2 Karras": ("KDPM2DiscreteScheduler", {"use_karras_sigmas": True}),
    "DPM2 a Karras": ("KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "UniPC": ("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2"}),
}
"""Documented name → diffusers class and the arguments that override the checkpoint's scheduler configuration."""


@dataclass(frozen=True)
class Schedule:
    """All that a generation needs of its scheduler. E is the number of U-Net evaluations (Heun: about two a step).

    The history of an image has ``HISTORY`` slots: latents j in slot ``latents_slot(j)``, prediction j in slot
    ``prediction_slot(j)``, the noise of this step in ``NOISE_SLOT``. Latents j + 1 = ``coefficients[j]`` · history.
    """

    timesteps: torch.Tensor
    """[E] float32: what the U-Net is told at each evaluation."""
    input_scale: torch.Tensor
    """[E] float32: the U-Net sees the latents times this."""
    coefficients: torch.Tensor
    """[E, HISTORY] float32."""
    draws_noise: tuple[bool, ...]
    """[E]: whether the step draws noise, be it with a coefficient of 0: the generator moves as diffusers' does."""
    initial_scale: float
    """Standard deviation of latents 0."""
    estimates: torch.Tensor
    """[E, 2] float32: the clean latents as an evaluation tells them, by the latents entering it and its prediction."""

    def __len__(self) -> int:
        return len(self.draws_noise)


def latents_slot(evaluation: int) -> int:
    """Slot of the latents that enter this evaluation."""
    return evaluation % LATENTS_KEPT


def prediction_slot(evaluation: int) -> int:
    """Slot of this evaluation's prediction."""
    return LATENTS_KEPT + evaluation % PREDICTIONS_KEPT


def build(name: str, config: Mapping[str, Any]) -> Any:
    """diffusers' scheduler for a documented name on a checkpoint's scheduler configuration.

    Raises :class:`InvalidInput` for a name that is not in ``SCHEDULERS``.
    """
    if name not in SCHEDULERS:
        raise InvalidInput("scheduler", f"got {name[:40]!r}; allowed: {', '.join(SCHEDULERS)}")
    kind, overrides = SCHEDULERS[name]
    return getattr(diffusers, kind).from_config(dict(config), **overrides)


def compile_schedule(name: str, steps: int, config: Mapping[str, Any]) -> Schedule:
    """Compile ``steps`` steps of the named scheduler. Takes 5 to 300 ms; callers keep the result."""
    scheduler = build(name, config)
    scheduler.set_timesteps(steps)
    trace = _run_on_basis(scheduler)
    coefficients = np.stack([_express(trace, evaluation) for evaluation in range(len(trace.draws_noise))])
    return Schedule(
        timesteps=scheduler.timesteps.to(torch.float32),
        input_scale=torch.tensor(trace.input_scale, dtype=torch.float32),
        coefficients=torch.from_numpy(coefficients).to(torch.float32),
        draws_noise=trace.draws_noise,
        initial_scale=float(scheduler.init_noise_sigma),
        estimates=_estimates(scheduler, torch.tensor(trace.input_scale)),
    )


def _estimates(scheduler: Any, input_scale: torch.Tensor) -> torch.Tensor:
    """[E, 2] float32: see :class:`Schedule`.

    Times the input scale, the latents of every scheduler are sqrt(a) * clean + sqrt(1 - a) * noise, with a the
    checkpoint's cumulative alpha at the timestep (Ho et al., 2020); a prediction is the noise, the clean latents, or
    sqrt(a) * noise - sqrt(1 - a) * clean (Salimans and Ho, 2022).
    """
    alphas = scheduler.alphas_cumprod.double().numpy()
    # Timesteps may lie between those of the training; diffusers interpolates the logarithm of sigma as well.
    log_sigmas = np.log(1 / np.maximum(alphas, _LEAST_ALPHA) - 1) / 2
    a = 1 / (1 + np.exp(2 * np.interp(scheduler.timesteps.double().numpy(), np.arange(len(alphas)), log_sigmas)))
    match scheduler.config.prediction_type:
        case "epsilon":
            by_latents, by_prediction = 1 / np.sqrt(a), -np.sqrt(1 / a - 1)
        case "v_prediction":
            by_latents, by_prediction = np.sqrt(a), -np.sqrt(1 - a)
        case _:  # "sample"
            by_latents, by_prediction = np.zeros_like(a), np.ones_like(a)
    return torch.from_numpy(np.stack([by_latents * input_scale.double().numpy(), by_prediction], axis=1)).float()


@dataclass(frozen=True)
class _Trace:
    """A scheduler's run, as vectors over the basis [first latents, prediction 0 … E-1, noise 0 … E-1]."""

    latents: NDArray[np.float64]
    """[E + 1, 1 + 2 E] float64: latents j in the basis."""
    input_scale: tuple[float, ...]
    draws_noise: tuple[bool, ...]


def _run_on_basis(scheduler: Any) -> _Trace:
    """Run the scheduler on unit vectors in place of pictures.

    Noise cannot be handed in: the scheduler draws it, over all elements. So the vectors carry as many extra elements,
    zero in every basis vector, in which only noise is seen; there its weights are solved for, and then taken off the
    rest.
    """
    evaluations = len(scheduler.timesteps)
    known = 1 + evaluations
    extra = 2 * evaluations + 16
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    generator = torch.Generator()
    latents = torch.zeros(1, known + extra, dtype=torch.float64)
    latents[0, 0] = float(scheduler.init_noise_sigma)
    run, noise, scales, draws = [latents], [], [], []
    for evaluation, timestep in enumerate(scheduler.timesteps):
        scales.append(float(scheduler.scale_model_input(torch.ones(1, 1, dtype=torch.float64), timestep)))
        prediction = torch.zeros_like(run[0])
        prediction[0, 1 + evaluation] = 1.0
        generator.manual_seed(evaluation)
        untouched = generator.get_state()
        arguments = {"generator": generator} if takes_generator else {}
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **arguments)[0]
        draws.append(not torch.equal(untouched, generator.get_state()))
        drawn = torch.randn(prediction.shape, generator=generator.manual_seed(evaluation), dtype=prediction.dtype)
        noise.append(drawn if draws[-1] else torch.zeros_like(drawn))
        run.append(latents.double())
    vectors, drawn_noise = torch.cat(run).numpy(), torch.cat(noise).numpy()
    weights = np.linalg.lstsq(drawn_noise[:, known:].T, vectors[:, known:].T, rcond=None)[0].T
    weights *= np.tri(evaluations + 1, evaluations, k=-1)
    basis = np.concatenate([vectors[:, :known] - weights @ drawn_noise[:, :known], weights], axis=1)
    return _Trace(basis, tuple(scales), tuple(draws))


def _express(trace: _Trace, evaluation: int) -> NDArray[np.float64]:
    """Latents ``evaluation + 1`` by what the history holds then: [HISTORY] float64."""
    evaluations = len(trace.draws_noise)
    unit = np.eye(1 + 2 * evaluations)
    held: dict[int, NDArray[np.float64]] = {NOISE_SLOT: unit[1 + evaluations + evaluation]}
    for past in range(evaluation, max(-1, evaluation - LATENTS_KEPT), -1):
        held[latents_slot(past)] = trace.latents[past]
    for past in range(evaluation, max(-1, evaluation - PREDICTIONS_KEPT), -1):
        held[prediction_slot(past)] = unit[1 + past]
    target = trace.latents[evaluation + 1]
    vectors = np.stack(list(held.values()), axis=1)
    # The history may express the target in several ways; the cut-off keeps the one with small coefficients.
    solution = np.linalg.lstsq(vectors, target, rcond=1e-9)[0]
    error = np.abs(vectors @ solution - target).max() / np.abs(target).max()
    if error > _TOLERANCE:
        raise EngineError(
            f"this scheduler looks back further than {LATENTS_KEPT} latents, {PREDICTIONS_KEPT} predictions"
        )
    coefficients = np.zeros(HISTORY)
    coefficients[list(held)] = solution
    return coefficients
