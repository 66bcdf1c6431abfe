"""What one batch teaches: noise is added, student and teacher look at the same, and the losses compare them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        empty: Tensor,
        guidance: float = 1.0,
        moments: Callable[[Tensor], Tensor],
        embeddings: Callable[[Tensor], Tensor],
    ) -> None:
        """student: `networks.student` itself, or what accelerate made of it: (latents, timesteps, embeddings) → output

        empty: the text of no caption, as a batch holds texts: [1, …]
        guidance: scale at which the teacher is asked
        moments: from a batch's pictures to the mean and log variance of their latents, [rows, 2 · channels, h, w]
        embeddings: from a batch's texts to [rows, tokens, width]
        """
        self._networks = networks
        self._student = student
        self._weights = weights
        self._empty = empty
        self._guidance = guidance
        self._moments = moments
        self._embeddings = embeddings

    def losses(self, batch: Batch) -> Losses:
        """The losses of a batch on the networks' device."""
        networks, noise = self._networks, self._networks.noise
        latents = self._latents(batch)
        added = batch.noise + batch.overshoot[:, None, None, None] * latents
        seen = noise.add_noise(latents, added, batch.timesteps)
        if noise.config.prediction_type == "v_prediction":
            target = noise.get_velocity(latents, added, batch.timesteps)
        else:
            target = added
        embeddings = self._embeddings(batch.texts)
        with watched(networks.student, [pair.student for pair in networks.pairs]) as ours:
            prediction = self._student(seen, batch.timesteps, embeddings).sample
        if networks.teacher is None:
            return task_loss(prediction, target)
        taught, theirs = self._ask_teacher(seen, batch.timesteps, embeddings)
        features = [(ours[pair.student], theirs[pair.teacher]) for pair in networks.pairs]
        return distillation_loss(prediction, target, taught, features, self._weights)

    @torch.no_grad()
    def _ask_teacher(self, seen: Tensor, timesteps: Tensor, embeddings: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The teacher's prediction and the outputs of its paired blocks, at its guidance scale."""
        taught, theirs = self._run_teacher(seen, timesteps, embeddings)
        if self._guidance == 1:
            return taught, theirs
        empty = self._embeddings(self._empty.to(seen.device)).expand(len(seen), -1, -1)
        free, without = self._run_teacher(seen, timesteps, empty)
        guided = {name: torch.lerp(without[name], output, self._guidance) for name, output in theirs.items()}
        return torch.lerp(free, taught, self._guidance), guided

    def _run_teacher(self, seen: Tensor, timesteps: Tensor, embeddings: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        teacher, names = self._networks.teacher, [pair.teacher for pair in self._networks.pairs]
        assert teacher is not None
        with watched(teacher, names) as outputs:
            prediction = teacher(seen.to(teacher.dtype), timesteps, embeddings.to(teacher.dtype)).sample
        return prediction, dict(outputs)

    def _latents(self, batch: Batch) -> Tensor:
        posterior = DiagonalGaussianDistribution(self._moments(batch.pictures))
        latents = posterior.mean + posterior.std * batch.posterior_noise
        return latents * self._networks.vae.config.scaling_factor
