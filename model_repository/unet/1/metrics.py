"""What the denoiser reports to Triton's metrics endpoint."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

# A guided image takes 2 rows, and a call is bounded at 16 rows by default.
_ROWS_BUCKETS = [1, 2, 4, 6, 8, 12, 16, 24, 32, 64]


class Metrics:
    """The denoiser's observer. Series are labelled as Triton labels its own."""

    def __init__(self, model: str, version: str, instance: str) -> None:
        labels = {"model": model, "version": version, "instance": instance}
        kind = pb_utils.MetricFamily
        self._families: list[Any] = []  # Triton drops a family's series when Python drops the family

        def metric(name: str, description: str, of_kind: int, **options: Any) -> Any:
            family = kind(name=f"tiny_sd_{name}", description=description, kind=of_kind)
            self._families.append(family)
            return family.Metric(labels=labels, **options)

        self._jobs = metric("jobs_in_flight", "Generations that the U-Net holds", kind.GAUGE)
        self._rows = metric("unet_call_rows", "Rows per U-Net call", kind.HISTOGRAM, buckets=_ROWS_BUCKETS)
        self._steps = metric("unet_steps_total", "U-Net evaluations of single images", kind.COUNTER)
        self._seconds = metric("denoising_seconds_total", "Seconds spent denoising", kind.COUNTER)
        self._evicted = metric(
            "jobs_evicted_total", "Generations dropped that Triton no longer asked for", kind.COUNTER
        )
        self._cancelled = metric("jobs_cancelled_total", "Generations stopped because somebody asked", kind.COUNTER)
        self._overdue = metric("jobs_overdue_total", "Generations stopped by their timeout", kind.COUNTER)

    def close(self) -> None:
        """Give the series up while Triton can be told; one that outlives the model ends its process by a fault."""
        vars(self).clear()

    def unet_call(self, rows: int, images: int) -> None:
        """Count one U-Net call."""
        self._rows.observe(rows)
        self._steps.increment(images)

    def denoised(self, seconds: float) -> None:
        """Add to the time spent."""
        self._seconds.increment(seconds)

    def jobs_in_flight(self, jobs: int) -> None:
        """Set the number of jobs."""
        self._jobs.set(jobs)

    def job_evicted(self) -> None:
        """Count a dropped job."""
        self._evicted.increment(1)

    def job_overdue(self) -> None:
        """Count an overdue job."""
        self._overdue.increment(1)

    def job_cancelled(self) -> None:
        """Count a cancelled job."""
        self._cancelled.increment(1)
