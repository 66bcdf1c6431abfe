"""The denoising loop, batched in flight: pick what runs, run it, book the results.

Jobs come and go between any two U-Net calls. A call holds images of equal shape from whichever jobs have had least of
the U-Net, each at its own timestep of its own schedule.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch

from tiny_sd_engine import checkpoint
from tiny_sd_engine.device import Device
from tiny_sd_engine.errors import Cancelled, EngineError, InvalidInput, Overdue
from tiny_sd_engine.schedulers import HISTORY, NOISE_SLOT, Schedule, compile_schedule, latents_slot, prediction_slot

log = logging.getLogger(__name__)

MAX_STEPS = 200
"""More than callers may ask for; it bounds the time that compiling a schedule takes."""


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


class Image:
    """One picture on its way from noise to latents."""

    def __init__(self, job: Job, seed: int, shape: tuple[int, int, int], device: torch.device) -> None:
        # Weak, since the job has its images: in a cycle their memory would wait for Python's collector.
        self._job = weakref.ref(job)
        self.evaluation = 0
        self._shape = shape
        self._generator = torch.Generator().manual_seed(seed)
        self._history = torch.zeros(HISTORY, *shape, device=device)
        self._history[latents_slot(0)] = self._noise() * job.schedule.initial_scale

    @property
    def job(self) -> Job:
        """Whose picture this is; it outlives the picture."""
        job = self._job()
        assert job is not None
        return job

    @property
    def latents(self) -> torch.Tensor:
        """[channels, h, w] float32."""
        return self._history[latents_slot(self.evaluation)]

    @property
    def finished(self) -> bool:
        """Whether ``latents`` are final."""
        return self.evaluation == len(self.job.schedule)

    def estimate(self) -> torch.Tensor:
        """[channels, h, w] float32: what the last evaluation took the picture's latents to be, without the noise."""
        if self.finished:
            return self.latents
        last = max(0, self.evaluation - 1)
        both = self._history[[latents_slot(last), prediction_slot(last)]]
        clean: torch.Tensor = torch.tensordot(self.job.schedule.estimates[last].to(both.device), both, dims=1)
        return clean

    def book(self, prediction: torch.Tensor) -> None:
        """Go one evaluation on with the U-Net's guided prediction, [channels, h, w] float32."""
        schedule = self.job.schedule
        self._history[prediction_slot(self.evaluation)] = prediction
        if schedule.draws_noise[self.evaluation]:
            self._history[NOISE_SLOT] = self._noise()
        following = torch.tensordot(self.job.coefficients[self.evaluation], self._history, dims=1)
        self.evaluation += 1
        self._history[latents_slot(self.evaluation)] = following

    def _noise(self) -> torch.Tensor:
        # Always drawn on the CPU: the same seed means the same picture on every device.
        return torch.randn(self._shape, generator=self._generator).to(self._history.device)


class Job:
    """A generation in flight: its images, and how it ended."""

    def __init__(self, task: Task, schedule: Schedule, shape: tuple[int, int, int], device: Device) -> None:
        self.task = task
        self.schedule = schedule
        self.coefficients = schedule.coefficients.to(device.torch_device)
        self.error: Exception | None = None
        self.served = 0.0
        """The U-Net's work for this job, and for others while it was not there; see :meth:`Denoiser._pick`."""
        self.previewed_step = 0
        """Step of the last preview; kept here for whoever makes them."""
        self.seen = time.monotonic()
        """When a run with this job last ended."""
        self.seen_in_run = 0
        """Which run that was."""
        guided = task.guidance_scale > 1.0
        texts = [task.negative_embeds, task.prompt_embeds] if guided else [task.prompt_embeds]
        self.embeddings = torch.stack(texts).to(device.torch_device, device.dtype)
        """[rows, tokens, hidden] in the U-Net's precision; rows: unconditional, conditional; or the latter alone."""
        self.images = [Image(self, seed, shape, device.torch_device) for seed in task.seeds]

    @property
    def rows(self) -> int:
        """U-Net rows of each image."""
        return self.embeddings.shape[0]

    @property
    def finished(self) -> bool:
        """Whether all images are final."""
        return all(image.finished for image in self.images)

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
        return all(bool(image.latents.isfinite().all()) for image in self.images)

    def latents(self) -> torch.Tensor:
        """[samples, channels, h, w] float32 on the CPU."""
        return torch.stack([image.latents for image in self.images]).cpu()


class Observer(Protocol):
    """Who wants to know what the denoiser does. Called from the thread that calls the denoiser."""

    def unet_call(self, rows: int, images: int) -> None:
        """A U-Net call takes so many images one step on."""

    def denoised(self, seconds: float) -> None:
        """A run of the denoiser has ended."""

    def jobs_in_flight(self, jobs: int) -> None:
        """The number of jobs has changed."""

    def job_evicted(self) -> None:
        """A job was dropped because nobody asked for it any more."""

    def job_overdue(self) -> None:
        """A job was stopped because its deadline passed."""

    def job_cancelled(self) -> None:
        """A job was stopped because somebody asked for it."""


class Denoiser:
    """The U-Net with the jobs in flight, by key. Safe to call from several threads; one of them runs at a time."""

    def __init__(
        self, path: Path, device: Device, max_rows: int | None = None, observer: Observer | None = None
    ) -> None:
        """``max_rows``: most rows of a U-Net call (an image's own rows always stay together); None: by the device."""
        self._unet = checkpoint.load_unet(path, device)
        self._device = device
        self._max_rows = max_rows or device.unet_rows
        self._observer = observer
        self._channels, self._pixels_per_latent = checkpoint.latent_shape(path)
        self._tokens = checkpoint.tokens_per_window(path)
        self._jobs: dict[object, Job] = {}
        self._served = 0.0
        self._runs = 0
        self._handed_back = False
        self._last_run = time.monotonic()
        self._lock = threading.Lock()
        config = checkpoint.load_scheduler_config(path)
        self._schedule = lru_cache(maxsize=256)(lambda name, steps: compile_schedule(name, steps, config))

    def job(self, key: object, task: Callable[[], Task]) -> Job:
        """The job in flight under ``key``, or a new one for ``task()``.

        An evicted job that is asked for again starts anew, and comes to the same result. Raises :class:`InvalidInput`
        for a task that cannot be run.
        """
        with self._lock:
            if key not in self._jobs:
                self._jobs[key] = self._admit(task())
                self._jobs[key].served = self._served
                self._jobs[key].seen_in_run = self._runs
                self._report_jobs()
            return self._jobs[key]

    def jobs(self) -> list[Job]:
        """All jobs in flight."""
        with self._lock:
            return list(self._jobs.values())

    def run_to_end(self, jobs: Sequence[Job]) -> None:
        """Denoise until all ``jobs`` have ended."""
        while unfinished := [job for job in jobs if not job.ended]:
            self.run(unfinished, math.inf)

    def stop(self, job: Job, reason: Overdue | Cancelled) -> None:
        """End a job before it is finished; its ``error`` is the reason."""
        job.error = reason
        if self._observer:
            if isinstance(reason, Overdue):
                self._observer.job_overdue()
            else:
                self._observer.job_cancelled()

    def remove(self, key: object) -> None:
        """Forget a job, ended or not."""
        with self._lock:
            self._jobs.pop(key, None)
            self._report_jobs()

    def evict(self, older_than_s: float) -> list[Job]:
        """Drop the jobs that nobody has run for so many seconds, and return them.

        A job that missed only the last run or two may just have waited for them to end: its time counts from then.
        """
        with self._lock:
            oldest = time.monotonic() - older_than_s
            waiting_since = {
                key: job.seen if self._runs - job.seen_in_run >= 3 else max(job.seen, self._last_run)
                for key, job in self._jobs.items()
            }
            dropped = [self._jobs.pop(key) for key, since in waiting_since.items() if since < oldest]
            if self._observer:
                for _ in dropped:
                    self._observer.job_evicted()
            self._report_jobs()
            return dropped

    def others_are_due(self, jobs: Sequence[Job]) -> bool:
        """Whether ``jobs`` lacks one of the last run, or admitted since, that has not ended. Once between two runs.

        Then a caller who hands ``jobs`` back at once meets all of them together next time. Otherwise jobs that came at
        different moments would go on taking turns, each with the U-Net for itself.
        """
        with self._lock:
            missing = any(
                job.seen_in_run == self._runs and not job.ended and job not in jobs for job in self._jobs.values()
            )
            self._handed_back = missing and not self._handed_back
            return self._handed_back

    def run(self, jobs: Sequence[Job], quantum_s: float) -> None:
        """Denoise until one of ``jobs`` has ended or ``quantum_s`` seconds have passed, whichever comes first.

        At least one U-Net call is made if there is one to make. A job that fails gets its ``error``; nothing is raised.
        """
        with self._lock, torch.inference_mode():
            start = time.monotonic()
            while True:
                self._stop_overdue(jobs)
                if any(job.ended for job in jobs):
                    break
                images = self._pick(jobs)
                if not images:
                    break
                self._advance(images)
                if time.monotonic() >= start + quantum_s:
                    break
            for job in jobs:
                if job.finished and job.error is None:
                    _check(job)
            self._synchronize(jobs)
            self._last_run = time.monotonic()
            self._runs += 1
            for job in jobs:
                job.seen, job.seen_in_run = self._last_run, self._runs
            if self._observer:
                self._observer.denoised(self._last_run - start)

    def warm_up(self, width: int, height: int) -> None:
        """Make one U-Net call with and one without guidance, for pictures of this size in pixels."""
        text = torch.zeros(self._tokens, self._unet.config.cross_attention_dim)
        for guidance_scale in (1.0, 2.0):
            job = self._admit(Task(text, text, "UniPC", 20, guidance_scale, [0], width, height))
            with torch.inference_mode():
                self._predict(job.images)
        self._device.synchronize()

    def _admit(self, task: Task) -> Job:
        if task.prompt_embeds.shape != task.negative_embeds.shape:
            raise InvalidInput("negative_embeds", "must have the shape of prompt_embeds")
        hidden = self._unet.config.cross_attention_dim
        if task.prompt_embeds.ndim != 2 or task.prompt_embeds.shape[-1] != hidden or not len(task.prompt_embeds):
            raise InvalidInput("prompt_embeds", f"must be [tokens, {hidden}]; got {list(task.prompt_embeds.shape)}")
        if not math.isfinite(task.guidance_scale):
            raise InvalidInput("guidance_scale", f"got {task.guidance_scale}; allowed: finite numbers")
        for name, value in (("img_width", task.width), ("img_height", task.height)):
            if value <= 0 or value % self._pixels_per_latent:
                raise InvalidInput(name, f"got {value}; allowed: multiples of {self._pixels_per_latent} pixels")
        if not task.seeds:
            raise InvalidInput("seed", "one for each image is needed")
        if not all(0 <= seed < 2**63 for seed in task.seeds):
            raise InvalidInput("seed", "allowed: 0 to 2**63 - 1")
        if not 1 <= task.num_inference_steps <= MAX_STEPS:
            raise InvalidInput("num_inference_steps", f"got {task.num_inference_steps}; allowed: 1 to {MAX_STEPS}")
        shape = (self._channels, task.height // self._pixels_per_latent, task.width // self._pixels_per_latent)
        return Job(task, self._schedule(task.scheduler, task.num_inference_steps), shape, self._device)

    def _stop_overdue(self, jobs: Iterable[Job]) -> None:
        now = time.time()
        for job in jobs:
            if job.task.deadline and now > job.task.deadline and not job.ended:
                self.stop(job, Overdue())

    def _pick(self, jobs: Iterable[Job]) -> list[Image]:
        """Images for one U-Net call: one of the job that has had least of the U-Net, then those that fit in with it.

        Jobs share the U-Net by work, not by calls: one of four large pictures has no more of it than one of a single
        small picture, which is done all the sooner. This is start-time fair queueing (Goyal, Vin and Cheng, 1996): a
        job that comes, or comes back, counts as served like the one whose turn it is.
        """
        unfinished = (image for job in jobs for image in job.images if not image.finished)
        waiting = sorted(unfinished, key=lambda image: (image.job.served, image.evaluation))
        picked: list[Image] = []
        rows = 0
        for image in waiting:
            if picked and (_shape(image) != _shape(picked[0]) or rows + image.job.rows > self._max_rows):
                continue
            picked.append(image)
            rows += image.job.rows
        if picked:
            self._served = max(self._served, picked[0].job.served)
        for image in picked:
            image.job.served = max(image.job.served, self._served) + image.job.rows * image.latents[0].numel()
        return picked

    def _advance(self, images: Sequence[Image]) -> None:
        """Take each image one step on, in one call. If that fails, each gets a call of its own: one may be at fault."""
        predictions: list[torch.Tensor] = []
        try:
            predictions = self._predict(images)
        except Exception as error:  # a failed call must not take down the jobs that had no part in it
            log.exception("a U-Net call of %d images failed", len(images))
            if len(images) == 1:
                _fail(images[0].job, error)
        if not predictions:  # only now is the error gone, whose traceback holds the memory of the failed call
            for image in images if len(images) > 1 else ():
                if not image.job.ended:
                    self._advance([image])
            return
        for image, prediction in zip(images, predictions, strict=True):
            try:
                image.book(prediction)
            except Exception as error:  # likewise
                log.exception("a step could not be booked")
                _fail(image.job, error)
        if self._observer:
            rows = sum(image.job.rows for image in images)
            self._observer.unet_call(rows, len(images))

    def _synchronize(self, jobs: Iterable[Job]) -> None:
        """Wait for the device. If it tells of a failure as late as this, no job of the run has a picture."""
        try:
            self._device.synchronize()
        except Exception as error:
            log.exception("the device failed")
            for job in jobs:
                if job.error is None:
                    _fail(job, error)

    def _predict(self, images: Sequence[Image]) -> list[torch.Tensor]:
        """One U-Net call. Returns the guided prediction of each image, [channels, h, w] float32."""
        rows = [image.job.rows for image in images]
        scaled = [image.latents * image.job.schedule.input_scale[image.evaluation] for image in images]
        timesteps = [image.job.schedule.timesteps[image.evaluation] for image in images]
        repeats = torch.tensor(rows)
        predictions = self._unet(
            torch.stack(scaled)
            .repeat_interleave(repeats.to(self._device.torch_device), dim=0, output_size=sum(rows))
            .to(self._device.dtype, memory_format=torch.channels_last),
            torch.stack(timesteps).repeat_interleave(repeats).to(self._device.torch_device),
            torch.cat([image.job.embeddings for image in images]),
            return_dict=False,
        )[0].float()
        return [
            _guide(own, image.job.task.guidance_scale)
            for image, own in zip(images, predictions.split(rows), strict=True)
        ]

    def _report_jobs(self) -> None:
        if self._observer:
            self._observer.jobs_in_flight(len(self._jobs))


def _check(job: Job) -> None:
    """Fail a finished job that has no picture."""
    try:
        if not job.is_finite():
            job.error = EngineError("the denoiser failed: the latents are not finite")
    except Exception as error:  # the memory for looking may be missing, too
        log.exception("latents could not be checked")
        _fail(job, error)


def _fail(job: Job, error: Exception) -> None:
    job.error = EngineError(f"the denoiser failed: {type(error).__name__}")
    job.error.__cause__ = error.with_traceback(None)  # which holds the memory of the failed call, and is in the log


def _shape(image: Image) -> tuple[torch.Size, int]:
    return image.latents.shape, image.job.embeddings.shape[1]


def _guide(rows: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans, 2022): away from the unconditional row, where there is one.

    rows: [1 or 2, channels, h, w]. Returns [channels, h, w].
    """
    if len(rows) == 1:
        return rows[0]
    unconditional, conditional = rows.unbind()
    return unconditional + guidance_scale * (conditional - unconditional)
