"""What one batch teaches: noise is added, student and teacher look at the same, and the losses compare them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from distillation.batches import Batch
from distillation.losses import Losses, Weights, distillation_loss, task_loss, watched
from distillation.networks import Networks


class Lesson:
    """The networks of a run, on their device."""

    def __init__(
        self,
        networks: Networks,
        student: Callable[..., Any],
        weights: Weights,
        *,
        moments: Callable[[Tensor], Tensor],
        embeddings: Callable[[Tensor], Tensor],
    ) -> None:
        """student: `networks.student` itself, or what accelerate made of it: (latents, timesteps, embeddings) → output

        moments: from a batch's pictures to the mean and log variance of their latents, [rows, 2 · channels, h, w]
        embeddings: from a batch's texts to [rows, tokens, width]
        """
        self._networks = networks
        self._student = student
        self._weights = weights
        self._moments = moments
        self._embeddings = embeddings

    def losses(self, batch: Batch) -> Losses:
        """The losses of a batch on the networks' device."""
        networks, noise = self._networks, self._networks.noise
        latents = self._latents(batch)
        seen = noise.add_noise(latents, batch.noise, batch.timesteps)
        if noise.config.prediction_type == "v_prediction":
            target = noise.get_velocity(latents, batch.noise, batch.timesteps)
        else:
            target = batch.noise
        embeddings = self._embeddings(batch.texts)
        with watched(networks.student, [pair.student for pair in networks.pairs]) as ours:
            prediction = self._student(seen, batch.timesteps, embeddings).sample
        if networks.teacher is None:
            return task_loss(prediction, target)
        with watched(networks.teacher, [pair.teacher for pair in networks.pairs]) as theirs, torch.no_grad():
            precision = networks.teacher.dtype
            taught = networks.teacher(seen.to(precision), batch.timesteps, embeddings.to(precision)).sample
        features = [(ours[pair.student], theirs[pair.teacher]) for pair in networks.pairs]
        return distillation_loss(prediction, target, taught, features, self._weights)

    def _latents(self, batch: Batch) -> Tensor:
        posterior = DiagonalGaussianDistribution(self._moments(batch.pictures))
        latents = posterior.mean + posterior.std * batch.posterior_noise
        return latents * self._networks.vae.config.scaling_factor
