"""What is in flight: a task, its job, the job's images; and how images go on together."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tiny_sd_engine.errors import InvalidInput
from tiny_sd_engine.schedulers import Schedule, latents_slot, prediction_slot
from tiny_sd_engine.slab import Slab, Unet, call_of, step, table_of
from tiny_sd_engine.turns import Turn

MAX_STEPS = 200
"""More than callers may ask for; it bounds the time that compiling a schedule takes."""
MAX_EVALUATIONS = 2 * MAX_STEPS
"""Heun evaluates about twice a step, the others less."""


@dataclass(frozen=True)
class Task:
    """What one generation asks of the U-Net."""

    prompt_embeds: torch.Tensor
    """[tokens, hidden] float32."""
    negative_embeds: torch.Tensor
    """[tokens, hidden] float32; unused at a guidance scale of 1 or below."""
    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    seeds: Sequence[int]
    """One image each; all its noise comes from a generator with this seed."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    deadline: float = 0.0
    """Unix time in seconds after which the result is of no use; 0: none."""
    job_id: str = ""
    """What its caller calls it; carried, not used."""
    preview_every: int = 0
    """Steps from one preview to the next; 0: none. Carried, not used."""

    def check(self, hidden: int, pixels_per_latent: int) -> None:
        """Raise :class:`InvalidInput` for what a checkpoint of this text width and latent size cannot run."""
        if self.prompt_embeds.shape != self.negative_embeds.shape:
            raise InvalidInput("negative_embeds", "must have the shape of prompt_embeds")
        if self.prompt_embeds.ndim != 2 or self.prompt_embeds.shape[-1] != hidden or not len(self.prompt_embeds):
            raise InvalidInput("prompt_embeds", f"must be [tokens, {hidden}]; got {list(self.prompt_embeds.shape)}")
        if not math.isfinite(self.guidance_scale):
            raise InvalidInput("guidance_scale", f"got {self.guidance_scale}; allowed: finite numbers")
        for name, value in (("img_width", self.width), ("img_height", self.height)):
            if value <= 0 or value % pixels_per_latent:
                raise InvalidInput(name, f"got {value}; allowed: multiples of {pixels_per_latent} pixels")
        if not self.seeds:
            raise InvalidInput("seed", "one for each image is needed")
        if not all(0 <= seed < 2**63 for seed in self.seeds):
            raise InvalidInput("seed", "allowed: 0 to 2**63 - 1")
        if not 1 <= self.num_inference_steps <= MAX_STEPS:
            raise InvalidInput("num_inference_steps", f"got {self.num_inference_steps}; allowed: 1 to {MAX_STEPS}")


class Image:
    """One picture on its way from noise to latents. Its slot of the slab is free again when it is gone."""

    def __init__(self, job: Job, seed: int, slab: Slab, table: torch.Tensor, texts: torch.Tensor) -> None:
        """table, texts: see :meth:`tiny_sd_engine.slab.Slab.put`."""
        # Weak, since the job has its images: in a cycle their memory would wait for Python's collector.
        self._job = weakref.ref(job)
        self.evaluation = 0
        self.slab = slab
        self.slot = slab.take()
        weakref.finalize(self, slab.give_back, self.slot).atexit = False
        self._generator = torch.Generator().manual_seed(seed)
        self._drawn: torch.Tensor | None = None
        slab.put(self.slot, self._draw() * job.schedule.initial_scale, table, texts, job.task.guidance_scale)

    @property
    def job(self) -> Job:
        """Whose picture this is; it outlives the picture."""
        job = self._job()
        assert job is not None
        return job

    @property
    def latents(self) -> torch.Tensor:
        """[channels, h, w] float32."""
        return self.slab.past(self.slot)[latents_slot(self.evaluation)]

    @property
    def left(self) -> int:
        """Evaluations to come."""
        return len(self.job.schedule) - self.evaluation

    @property
    def finished(self) -> bool:
        """Whether ``latents`` are final."""
        return not self.left

    @property
    def draws_noise(self) -> bool:
        """Whether the next evaluation does."""
        return self.job.schedule.draws_noise[self.evaluation]

    def estimate(self) -> torch.Tensor:
        """[channels, h, w] float32: what the last evaluation took the picture's latents to be, without the noise."""
        if self.finished:
            return self.latents
        last = max(0, self.evaluation - 1)
        both = self.slab.past(self.slot)[[latents_slot(last), prediction_slot(last)]]
        clean: torch.Tensor = torch.tensordot(self.job.schedule.estimates[last].to(both.device), both, dims=1)
        return clean

    def noise(self) -> torch.Tensor:
        """[channels, h, w] float32 on the CPU: what the next evaluation draws; the same however often it is tried."""
        if self._drawn is None:
            self._drawn = self._draw()
        return self._drawn

    def book(self) -> None:
        """The next evaluation is done: its results are in the slab."""
        self.evaluation += 1
        self._drawn = None

    def _draw(self) -> torch.Tensor:
        # Always on the CPU: the same seed means the same picture on every device.
        return torch.randn(self.slab.shape, generator=self._generator)


class Job:
    """A generation in flight: its images, and how it ended."""

    def __init__(self, task: Task, schedule: Schedule, slab: Slab) -> None:
        self.task = task
        self.schedule = schedule
        self.error: Exception | None = None
        self.turn = Turn(0.0, 0)
        """Its place in line."""
        self.previewed_step = 0
        """Step of the last preview; kept here for whoever makes them."""
        self.seen = time.monotonic()
        """When a run with this job last ended."""
        self.seen_in_run = 0
        """Which run that was."""
        self.rows = 2 if task.guidance_scale > 1.0 else 1
        """U-Net rows of each image: unconditional, conditional; or the latter alone."""
        table = table_of(schedule).to(slab.device.torch_device)
        texts = torch.stack([task.negative_embeds, task.prompt_embeds]).to(slab.device.torch_device, slab.device.dtype)
        self.images = [Image(self, seed, slab, table, texts) for seed in task.seeds]

    @property
    def finished(self) -> bool:
        """Whether all images are final."""
        return all(image.finished for image in self.images)

    @property
    def begun(self) -> bool:
        """Whether it shows to be under way: a step of it is done."""
        return self.step > 0

    @property
    def work(self) -> int:
        """What is left to do: latents (h * w) times rows times evaluations."""
        return self.rows * sum(image.slab.area * image.left for image in self.images)

    @property
    def calls(self) -> int:
        """Calls of the U-Net that have to follow one another until the end."""
        return max(image.left for image in self.images)

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do: finished, or failed with ``error``."""
        return self.error is not None or self.finished

    @property
    def step(self) -> int:
        """Steps done, of ``task.num_inference_steps``, averaged over the images; one may take several evaluations."""
        done = sum(image.evaluation for image in self.images)
        return done * self.task.num_inference_steps // (len(self.schedule) * len(self.images))

    def estimate(self) -> torch.Tensor:
        """[samples, channels, h, w] float32 on the CPU: the pictures' latents as far as they can be told by now."""
        return torch.stack([image.estimate() for image in self.images]).cpu()

    def is_finite(self) -> bool:
        """Whether there is a picture in the latents at all, neither infinities nor NaN."""
        return bool(torch.stack([image.latents for image in self.images]).isfinite().all())

    def latents(self) -> torch.Tensor:
        """[samples, channels, h, w] float32 on the CPU."""
        return torch.stack([image.latents for image in self.images]).cpu()


def take_step(images: Sequence[Image], unet: Unet) -> None:
    """Take images of one slab an evaluation on, in one call of the U-Net. If it fails, they are where they were."""
    slab = images[0].slab
    drawing = [image for image in images if image.draws_noise]
    ordered = drawing + [image for image in images if not image.draws_noise]
    call = call_of([image.slot for image in ordered], [image.job.rows for image in ordered])
    noise = slab.device.send(torch.stack([image.noise() for image in drawing]).flatten(1)) if drawing else None
    step(slab, unet, slab.device.send(call), len(ordered), noise)
    for image in images:
        image.book()
