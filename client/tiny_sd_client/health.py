"""Whether a server can make pictures, found out by beginning one."""

from __future__ import annotations

import secrets
import time
from contextlib import closing

from tiny_sd_client._client import Client
from tiny_sd_client.errors import Busy, DeadlineExceeded
from tiny_sd_client.results import Progress, Stage

_LOOK_S = 0.5
_STEPS = 20
_FULL = "the server is full, and no generation gets on"


def check(client: Client, timeout: float, *, whole: bool = False) -> None:
    """Draw as far as the first step, or with ``whole`` to the end: Triton is ready even when a model has died.

    timeout: seconds, in all

    A full server is healthy if a generation gets on, and a busy one if the check's own does, however slowly. Raises
    TinySDError if the server is not healthy. The client must have no patience, or a server that is away would only be
    late.
    """
    deadline = time.monotonic() + timeout
    left = timeout
    while left > 0:
        try:
            _draw(client, left, whole=whole)
        except Busy as full:
            if _gets_on(client, full.limit, deadline):
                return
        else:
            return
        left = deadline - time.monotonic()
    raise DeadlineExceeded(_FULL)


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


def _gets_on(client: Client, limit: int, deadline: float) -> bool:
    """Look at the jobs of a full server until one gets on, or a new one has come; or until there is room: False then.

    Those that are gone prove nothing: they may have ended, or been lost.
    """
    before = _seen(client)
    while (now := _seen(client)) <= before:
        if len(now) < limit:
            return False
        if time.monotonic() > deadline:
            raise DeadlineExceeded(_FULL)
        time.sleep(_LOOK_S)
    return True


def _seen(client: Client) -> set[tuple[str, Stage, int]]:
    return {(job.job_id, job.stage, job.step) for job in client.jobs()}
