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
        teacher_guidance: float = 1.0,
        student_guidance: float = 1.0,
        moments: Callable[[Tensor], Tensor],
        embeddings: Callable[[Tensor], Tensor],
    ) -> None:
        """student: `networks.student` itself, or what accelerate made of it: (latents, timesteps, embeddings) → output

        teacher_guidance, student_guidance: scales at which their predictions are compared
        moments: from a batch's pictures to the mean and log variance of their latents, [rows, 2 · channels, h, w]
        embeddings: from a batch's texts to [rows, tokens, width]
        """
        self._networks = networks
        self._student = student
        self._weights = weights
        self._teacher_guidance = teacher_guidance
        self._student_guidance = student_guidance
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
            prediction = self._ask_student(seen, batch, embeddings)
        if networks.teacher is None:
            return task_loss(prediction, target)
        taught, theirs = self._ask_teacher(seen, batch, embeddings)
        features = [(ours[pair.student], theirs[pair.teacher]) for pair in networks.pairs]
        return distillation_loss(prediction, target, taught, features, self._weights)

    def _ask_student(self, seen: Tensor, batch: Batch, embeddings: Tensor) -> Tensor:
        """The student's prediction at its guidance scale; above or below 1 its blocks see every row with its negative
        as well, after those with the captions.
        """
        if self._student_guidance == 1:
            alone: Tensor = self._student(seen, batch.timesteps, embeddings).sample
            return alone
        texts = torch.cat([embeddings, self._embeddings(batch.negatives)])
        told, free = self._student(seen.repeat(2, 1, 1, 1), batch.timesteps.repeat(2), texts).sample.float().chunk(2)
        return torch.lerp(free, told, self._student_guidance)

    @torch.no_grad()
    def _ask_teacher(self, seen: Tensor, batch: Batch, embeddings: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The teacher's prediction at its guidance scale, and what its paired blocks would give a student that is like
        it at its own.
        """
        taught, theirs = self._run_teacher(seen, batch.timesteps, embeddings)
        if self._teacher_guidance == self._student_guidance == 1:
            return taught, theirs
        free, without = self._run_teacher(seen, batch.timesteps, self._embeddings(batch.negatives))
        share = self._teacher_guidance / self._student_guidance
        guided = {name: torch.lerp(without[name], output, share) for name, output in theirs.items()}
        if self._student_guidance != 1:
            guided = {name: torch.cat([output, without[name]]) for name, output in guided.items()}
        return torch.lerp(free, taught, self._teacher_guidance), guided

    def _run_teacher(self, seen: Tensor, timesteps: Tensor, embeddings: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        networks, names = self._networks, [pair.teacher for pair in self._networks.pairs]
        usual = tuple(seen.shape[1:]) == networks.latent_shape(networks.sizes[0])
        teacher = networks.teacher if usual else networks.more_sizes_teacher
        assert teacher is not None
        with watched(teacher, names) as outputs:
            prediction = teacher(seen.to(teacher.dtype), timesteps, embeddings.to(teacher.dtype)).sample
        return prediction, dict(outputs)

    def _latents(self, batch: Batch) -> Tensor:
        posterior = DiagonalGaussianDistribution(self._moments(batch.pictures))
        latents = posterior.mean + posterior.std * batch.posterior_noise
        return latents * self._networks.vae.config.scaling_factor
