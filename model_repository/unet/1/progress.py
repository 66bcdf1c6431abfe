"""What the denoiser tells the job board."""

from __future__ import annotations

import base64
import time

import triton_python_backend_utils as pb_utils

from tiny_sd_engine.denoiser import Denoiser
from tiny_sd_engine.flight import Job
from tiny_sd_engine.jobs import Board, Preview
from tiny_sd_engine.previews import Previewer

_EVERY_S = 0.1


class Progress:
    """How far jobs are, and their previews."""

    def __init__(self, board: Board, denoiser: Denoiser, previewer: Previewer) -> None:
        self._board = board
        self._denoiser = denoiser
        self._previewer = previewer
        self._told_at = 0.0

    def is_due(self) -> bool:
        """Whether callers who watch want to hear something again."""
        return time.monotonic() >= self._told_at + _EVERY_S

    def tell(self, jobs: list[Job]) -> None:
        """Say how far the jobs are, and show the previews that are due."""
        left = {job.task.job_id: seconds for job, seconds in self._denoiser.seconds_left().items()}
        self._board.denoised({job.task.job_id: job.step for job in jobs}, left)
        for job in jobs:
            every = job.task.preview_every
            if every and not job.ended and job.step // every > job.previewed_step // every:
                job.previewed_step = job.step
                self._show(job)
        self._told_at = time.monotonic()

    def _show(self, job: Job) -> None:
        try:
            files = [base64.b64encode(self._previewer.preview(image)).decode() for image in job.estimate()]
        except Exception as error:  # no preview is worth the pictures of the whole batch
            pb_utils.Logger.log_warn(f"unet: no preview: {error!r}")
        else:
            self._board.show(job.task.job_id, Preview(job.step, tuple(files)))
