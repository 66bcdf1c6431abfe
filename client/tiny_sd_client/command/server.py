"""``tiny-sd status``, ``jobs`` and ``cancel``: what the server is doing."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from tiny_sd_client.command.connection import connect
from tiny_sd_client.command.failures import report
from tiny_sd_client.command.terminal import printable
from tiny_sd_client.errors import UnknownJob
from tiny_sd_client.results import JobStatus


def status(options: argparse.Namespace) -> int:
    """Print how the server is; the exit code is 1 while it is not ready."""
    with connect(options) as client:
        state = client.status()
    if options.json:
        known = asdict(state)
        del known["jobs"]
        sys.stdout.write(json.dumps(known) + "\n")
    else:
        sys.stdout.write(
            f"ready      {'yes' if state.ready else 'no'}\n"
            f"version    {printable(state.version)}\n"
            f"in flight  {state.in_flight} of {state.max_in_flight}\n"
        )
    return 0 if state.ready else 1


def jobs(options: argparse.Namespace) -> int:
    """Print the generations in flight, as a table or one JSON object a line."""
    with connect(options) as client:
        listed = client.jobs()
    if options.json:
        sys.stdout.writelines(json.dumps(asdict(job)) + "\n" for job in listed)
        return 0
    table = [("ID", "STAGE", "STEP", "SECONDS", "LEFT"), *map(_row, listed)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    return 0


def cancel(options: argparse.Namespace) -> int:
    """Cancel each job; one that is not in flight does not keep the others from it."""
    code = 0
    with connect(options) as client:
        for job_id in options.job_ids:
            try:
                client.cancel(job_id)
            except UnknownJob as error:
                error.add_note(job_id)
                code = report(error, as_json=options.json)
            else:
                known = {"job_id": job_id, "stage": "cancelling"}
                sys.stdout.write(f"{json.dumps(known) if options.json else job_id}\n")
    return code


def _row(job: JobStatus) -> tuple[str, ...]:
    left = "" if job.seconds_left is None else f"{job.seconds_left:.1f}"
    return printable(job.job_id), job.stage.value, f"{job.step}/{job.steps}", f"{job.seconds:.1f}", left
