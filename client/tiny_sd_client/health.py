"""Whether a server can make pictures, found out by beginning one."""

from __future__ import annotations

import secrets
import time
from contextlib import closing

from tiny_sd_client._client import Client
from tiny_sd_client.errors import Busy, DeadlineExceeded
from tiny_sd_client.results import Progress

_LOOK_S = 0.5
_STEPS = 20


def check(client: Client, timeout: float, *, whole: bool = False) -> None:
    """Draw as far as the first step, or with ``whole`` to the end: Triton is ready even when a model has died.

    timeout: seconds, in all

    A full server is healthy if a generation gets on, and a busy one if the check's own does, however slowly. Raises
    TinySDError if the server is not healthy. The client must have no patience, or a server that is away would only be
    late.
    """
    deadline = time.monotonic() + timeout
    try:
        _draw(client, timeout, whole=whole)
    except Busy:
        _see_it_move(client, deadline)


def _draw(client: Client, timeout: float, *, whole: bool) -> None:
    # The text encoder keeps the embeddings of late prompts, so each check needs one of its own.
    prompt = f"check {secrets.token_hex(8)}"
    step = 0
    try:
        with closing(client.stream(prompt, num_inference_steps=_STEPS, timeout=timeout)) as events:
            for event in events:
                if isinstance(event, Progress):
                    step = event.step
                if step and not whole:
                    return
    except DeadlineExceeded:
        if not 0 < step < _STEPS:  # it never began, or was denoised and never decoded
            raise


def _see_it_move(client: Client, deadline: float) -> None:
    """Look at the jobs of a full server until one gets on, or a new one has come."""
    before = {(job.job_id, job.stage, job.step) for job in client.jobs()}
    while {(job.job_id, job.stage, job.step) for job in client.jobs()} <= before:
        if time.monotonic() > deadline:
            raise DeadlineExceeded("the server is full, and no generation gets on")
        time.sleep(_LOOK_S)
