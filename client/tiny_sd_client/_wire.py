"""What travels: a generation's parameters as a model's inputs, and its answers as results."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tiny_sd_client._transport import Inputs, Outputs
from tiny_sd_client.errors import ServerFault
from tiny_sd_client.parameters import InvalidParameter, Parameters, parse
from tiny_sd_client.results import Generation, JobStatus, Progress, ServerStatus, Stage, Timings

STREAM_MODEL = "tiny_sd_stream"
JOBS_MODEL = "jobs"
MAX_PREVIEW_EVERY = 100

DATATYPES = {
    "prompt": "BYTES",
    "negative_prompt": "BYTES",
    "scheduler": "BYTES",
    "num_inference_steps": "INT32",
    "guidance_scale": "FP32",
    "samples": "INT32",
    "seed": "INT64",
    "img_width": "INT32",
    "img_height": "INT32",
    "base64": "BOOL",
    "image_format": "BYTES",
    "preview_every": "INT32",
    "action": "BYTES",
    "job_id": "BYTES",
}
"""Triton's datatype of each input of the two models."""

_JOB_ID = re.compile(r"[!-~]{1,128}")
_LONGEST_TIMEOUT_S = 1e12  # its microseconds travel in 64 bits


def resolved(values: Mapping[str, object]) -> Parameters:
    """The parameters in ``values``, with a seed drawn where none is given; their sizes are the server's to judge.

    Raises InvalidParameter.
    """
    return parse(values, sizes=None).resolved()


def checked_job_id(job_id: str | None) -> str | None:
    """``job_id`` itself. Raises InvalidParameter unless it is None or can be a job's id."""
    if job_id is not None and not (isinstance(job_id, str) and _JOB_ID.fullmatch(job_id)):
        shown = repr(job_id) if len(str(job_id)) <= 40 else f"text of {len(str(job_id))} characters"
        raise InvalidParameter("job_id", f"got {shown}; allowed: 1 to 128 printable ASCII characters without spaces")
    return job_id


def checked_timeout(timeout: float | None) -> float | None:
    """``timeout`` itself. Raises InvalidParameter unless it is None or a number of seconds above 0, 1e12 at most."""
    if timeout is not None and not (isinstance(timeout, int | float) and 0 < timeout <= _LONGEST_TIMEOUT_S):
        raise InvalidParameter("timeout", f"got {timeout!r}; allowed: seconds above 0, or None for no bound")
    return timeout


def checked_preview_every(preview_every: int) -> int:
    """``preview_every`` itself. Raises InvalidParameter unless it is an integer from 0 to 100."""
    if type(preview_every) is not int or not 0 <= preview_every <= MAX_PREVIEW_EVERY:
        allowed = f"an integer from 0 (no previews) to {MAX_PREVIEW_EVERY}"
        raise InvalidParameter("preview_every", f"got {preview_every!r}; allowed: {allowed}")
    return preview_every


def generation_inputs(parameters: Parameters, preview_every: int, *, base64: bool) -> Inputs:
    """The inputs of ``tiny_sd_stream``."""
    return {**parameters.picture(), "base64": base64, "preview_every": preview_every}


def read_progress(outputs: Outputs, url: str, *, base64: bool) -> Progress:
    """One event of ``tiny_sd_stream``. Raises ServerFault for what is none."""
    with _understanding(url):
        (status,) = _job_statuses(outputs)
        return Progress(**vars(status), previews=_files(outputs.get("preview", []), base64))


def read_generation(outputs: Outputs, url: str, total: float, *, base64: bool) -> Generation:
    """The last event of ``tiny_sd_stream``; ``total`` seconds it took. Raises ServerFault for what is none."""
    with _understanding(url):
        return Generation(
            job_id=_text(outputs["job_id"][0]),
            files=_files(outputs["image"], base64),
            seeds=tuple(outputs["seeds"]),
            parameters=parse(json.loads(outputs["parameters"][0]), sizes=None),
            timings=Timings(server=float(outputs["seconds"][0]), total=total),
        )


def read_jobs(outputs: Outputs, url: str) -> list[JobStatus]:
    """The answer of ``jobs``. Raises ServerFault for what is none."""
    with _understanding(url):
        return _job_statuses(outputs)


def read_status(outputs: Outputs, url: str, version: str) -> ServerStatus:
    """The answer of ``jobs`` to ``list``, as the state of a ready server. Raises ServerFault for what is none."""
    with _understanding(url):
        jobs = _job_statuses(outputs)
        return ServerStatus(True, version, len(jobs), int(outputs["max_in_flight"][0]), tuple(jobs))


def _job_statuses(outputs: Outputs) -> list[JobStatus]:
    columns = (outputs[name] for name in ("job_id", "stage", "step", "steps", "seconds", "seconds_left"))
    return [
        JobStatus(
            job_id=_text(job_id),
            stage=Stage(_text(stage)),
            step=int(step),
            steps=int(steps),
            seconds=float(seconds),
            seconds_left=float(seconds_left) if seconds_left >= 0 else None,
        )
        for job_id, stage, step, steps, seconds, seconds_left in zip(*columns, strict=True)
    ]


def _files(values: list[Any], encoded: bool) -> tuple[bytes, ...]:
    return tuple(base64.b64decode(value) if encoded else value for value in values)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


@contextmanager
def _understanding(url: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ServerFault(f"{url}: an answer of the server makes no sense ({error!r})") from error
