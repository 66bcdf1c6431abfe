"""The denoising loop, batched in flight: pick what runs, run it, book the results.

Jobs come and go between any two U-Net calls. A call holds images of equal shape from whichever jobs are first in line,
each at its own timestep of its own schedule.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch

from tiny_sd_engine import checkpoint, memory
from tiny_sd_engine.device import Device, threads_for
from tiny_sd_engine.errors import Cancelled, EngineError, Overdue
from tiny_sd_engine.flight import MAX_EVALUATIONS, Image, Job, Task, take_step
from tiny_sd_engine.graphs import CudaCapture, Graphs
from tiny_sd_engine.schedulers import compile_schedule
from tiny_sd_engine.settings import DEFAULT_SIZE
from tiny_sd_engine.slab import Slab
from tiny_sd_engine.turns import Lately, Speed, Turns

log = logging.getLogger(__name__)

_ROUND_TRIPS_SHARE = 0.02
"""Of the time, that handing jobs back and getting them again may take."""
_MISSED_RUNS = 2
"""Who asks for a job may miss so many runs, busy with the ones before; the job is worked on in them all the same."""
_MEMORY_AHEAD = 512 * 2**20
"""For the small tensors of a U-Net and its calls, which are faster in large pages, too."""


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
        """``max_rows``: most rows of a U-Net call, of larger pictures than usual as many fewer as these are larger; an
        image's own rows always stay together. None: by the device.
        """
        self._device = device
        self._max_rows = max_rows or device.unet_rows
        if device.torch_device.type == "cpu":
            memory.keep(True)
            memory.take_ahead(_MEMORY_AHEAD)
        self._unet: Any = checkpoint.load_unet(path, device)
        if device.records_calls:
            self._unet = Graphs(self._unet, self._max_rows, CudaCapture(device.torch_device))
        self._observer = observer
        self._channels, self._pixels_per_latent = checkpoint.latent_shape(path)
        self._channels_within = max(self._unet.config.block_out_channels)
        self._usual_area = (DEFAULT_SIZE // self._pixels_per_latent) ** 2  # latents
        self._tokens = checkpoint.tokens_per_window(path)
        self._jobs: dict[object, Job] = {}
        # Weak: a slab belongs to its images, and its memory goes with the last of them.
        self._slabs: weakref.WeakValueDictionary[object, Slab] = weakref.WeakValueDictionary()
        self._turns = Turns()
        self._speed = Speed()
        self._round_trip = Lately()
        self._runs = 0
        self._last_run = time.monotonic()
        self._lock = threading.RLock()  # the calls of ``run``'s caller come from within it
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
                self._jobs[key].turn = self._turns.enter(self._jobs[key].work)
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
        """End a job before it is finished; its ``error`` is the reason. One that has ended stays as it is."""
        if job.ended:
            return
        job.error = reason
        if self._observer:
            if isinstance(reason, Overdue):
                self._observer.job_overdue()
            else:
                self._observer.job_cancelled()

    def remove(self, key: object) -> None:
        """Forget a job, ended or not."""
        with self._lock:
            if job := self._jobs.pop(key, None):
                self._let_go(job)
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
            for job in dropped:
                self._let_go(job)
                if self._observer:
                    self._observer.job_evicted()
            self._report_jobs()
            return dropped

    def seconds_left(self) -> dict[Job, float]:
        """When the jobs in flight will be done, if no others come; empty as long as nothing has been measured."""
        with self._lock:
            line = sorted((job for job in self._jobs.values() if not job.ended), key=lambda job: job.turn)
            until = accumulate(job.work for job in line)
            left = [self._speed.seconds(work, job.calls) for job, work in zip(line, until, strict=True)]
            return {job: seconds for job, seconds in zip(line, left, strict=True) if seconds is not None}

    def time_slice_s(self, at_most_s: float) -> float:
        """How long a run should last for the round trips between runs to take a small share; at most so long."""
        with self._lock:
            round_trip_s = self._round_trip.mean
        return at_most_s if round_trip_s is None else min(at_most_s, round_trip_s / _ROUND_TRIPS_SHARE)

    def others(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs in flight besides ``jobs`` that have not ended and may be expected to be asked for soon.

        These are worked on as well. Otherwise jobs that came at different moments would take turns, each with the U-Net
        for itself.
        """
        with self._lock:
            since = self._runs - _MISSED_RUNS
            present = set(jobs)
            return [
                job for job in self._jobs.values() if job not in present and job.seen_in_run >= since and not job.ended
            ]

    def run(
        self,
        jobs: Sequence[Job],
        quantum_s: float,
        ends: Callable[[], bool] = lambda: False,
        others: Sequence[Job] = (),
    ) -> None:
        """Denoise ``jobs`` and ``others`` until one has ended, ``quantum_s`` seconds have passed or ``ends`` says so.

        ``ends`` is asked after every U-Net call, and may use the denoiser. ``others``: those that nobody asks for in
        this run. At least one call is made if there is one to make. A job that fails gets its ``error``; nothing is
        raised.
        """
        everyone = [*jobs, *others]
        with self._lock, torch.inference_mode(), threads_for(self._channels_within):
            start = time.monotonic()
            if any(job.seen_in_run == self._runs and job.begun for job in everyone):
                self._round_trip.measured(start - self._last_run)
            work = calls = 0
            pace = self._device.pace()
            while True:
                self._stop_overdue(everyone)
                if any(job.ended for job in everyone):
                    break
                images = self._pick(everyone)
                if not images:
                    break
                self._advance(images)
                self._wait(pace.keep, everyone)
                work += _work(images)
                calls += 1
                if time.monotonic() >= start + quantum_s or ends():
                    break
            for job in everyone:
                if job.finished and job.error is None:
                    _check(job)
            self._wait(self._device.synchronize, everyone)
            self._last_run = time.monotonic()
            self._runs += 1
            if calls:
                self._speed.measured(work, calls, self._last_run - start)
            for job in jobs:
                job.seen, job.seen_in_run = self._last_run, self._runs
            if self._observer:
                self._observer.denoised(self._last_run - start)

    def warm_up(self, width: int, height: int) -> None:
        """Take an image with and one without guidance a step on, of this size in pixels; on a GPU, record its calls."""
        text = torch.zeros(self._tokens, self._unet.config.cross_attention_dim)
        for guidance_scale in (1.0, 2.0):
            job = self._admit(Task(text, text, "UniPC", 20, guidance_scale, [0], width, height))
            with torch.inference_mode():
                take_step(job.images, self._unet)
        if isinstance(self._unet, Graphs):
            where, dtype, rows = self._device.torch_device, self._device.dtype, max(job.rows, self._max_rows)
            with torch.inference_mode():
                self._unet.record(
                    job.images[0].latents.to(dtype).expand(rows, -1, -1, -1),
                    job.schedule.timesteps[:1].to(where).expand(rows),
                    text.to(where, dtype).expand(rows, -1, -1),
                )
        self._device.synchronize()

    def _admit(self, task: Task) -> Job:
        hidden = self._unet.config.cross_attention_dim
        task.check(hidden, self._pixels_per_latent)
        shape = (self._channels, task.height // self._pixels_per_latent, task.width // self._pixels_per_latent)
        schedule = self._schedule(task.scheduler, task.num_inference_steps)
        return Job(task, schedule, self._slab(shape, (len(task.prompt_embeds), hidden)))

    def _slab(self, shape: tuple[int, int, int], text: tuple[int, int]) -> Slab:
        slab = self._slabs.get((shape, text))
        if slab is None:
            slab = Slab(shape, text, MAX_EVALUATIONS, self._device)
            self._slabs[shape, text] = slab
        return slab

    def _stop_overdue(self, jobs: Iterable[Job]) -> None:
        now = time.time()
        for job in jobs:
            if job.task.deadline and now > job.task.deadline:
                self.stop(job, Overdue())

    def _pick(self, jobs: Iterable[Job]) -> list[Image]:
        """Images for one U-Net call: the first in line, then those that fit in with it.

        Who has just come takes its first step at once, so that its caller sees it begin. After that the line is that of
        :class:`Turns`; the work of a step is its rows' latents.
        """
        unfinished = (image for job in jobs for image in job.images if not image.finished)
        waiting = sorted(unfinished, key=lambda image: (image.job.begun, image.job.turn, image.evaluation))
        picked: list[Image] = []
        rows = 0
        for image in waiting:
            if picked and (image.slab is not picked[0].slab or not self._fit(rows + image.job.rows, image.slab.area)):
                continue
            picked.append(image)
            rows += image.job.rows
        self._turns.worked(_work(picked))
        return picked

    def _fit(self, rows: int, area: int) -> bool:
        """Whether a call may hold so many rows of so many latents: all wait for it, and compute in its memory."""
        return rows * max(1.0, area / self._usual_area) <= self._max_rows

    def _advance(self, images: Sequence[Image]) -> None:
        """Take each image one step on, in one call. If that fails, each gets a call of its own: one may be at fault."""
        try:
            take_step(images, self._unet)
        except Exception as error:  # a failed call must not take down the jobs that had no part in it
            log.exception("a U-Net call of %d images failed", len(images))
            if len(images) == 1:
                _fail(images[0].job, error)
        else:
            if self._observer:
                self._observer.unet_call(sum(image.job.rows for image in images), len(images))
            return
        # Only now is the error gone, whose traceback holds the memory of the failed call.
        for image in images if len(images) > 1 else ():
            if not image.job.ended:
                self._advance([image])

    def _wait(self, wait: Callable[[], None], jobs: Iterable[Job]) -> None:
        """Wait for the device. If it tells of a failure as late as this, no job of the run has a picture."""
        try:
            wait()
        except Exception as error:
            log.exception("the device failed")
            for job in jobs:
                if job.error is None:
                    _fail(job, error)

    def _let_go(self, job: Job) -> None:
        if not job.finished:
            self._turns.leave(job.turn)

    def _report_jobs(self) -> None:
        if self._observer:
            self._observer.jobs_in_flight(len(self._jobs))


def _work(images: Iterable[Image]) -> int:
    """Of one step, as in :attr:`Job.work`."""
    return sum(image.job.rows * image.slab.area for image in images)


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
