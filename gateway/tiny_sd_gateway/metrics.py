"""Prometheus metrics of one gateway process."""

from __future__ import annotations

from decimal import Decimal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tiny_sd_gateway import money
from tiny_sd_gateway.generations import Api, Depth, Generation

_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_GENERATION_BUCKETS = (0.25, 0.5, 1, 2, 3, 5, 8, 12, 20, 30, 60, 120, 300, 600)


class Metrics:
    """Counters and gauges, in a registry of their own, so that several gateways fit into one process."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "tiny_sd_gateway_requests", "HTTP requests.", ["route", "method", "code"], registry=registry
        )
        self.request_seconds = Histogram(
            "tiny_sd_gateway_request_seconds",
            "Duration of HTTP requests, streams to their end.",
            ["route"],
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        self.generations = Counter(
            "tiny_sd_gateway_generations", "Runs of generations that ended.", ["api", "outcome"], registry=registry
        )
        self.generation_seconds = Histogram(
            "tiny_sd_gateway_generation_seconds",
            "Duration of completed runs, without the time in the queue.",
            ["api"],
            buckets=_GENERATION_BUCKETS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "tiny_sd_gateway_in_flight", "Generations that this process has on Triton now.", ["api"], registry=registry
        )
        self.queue_length = Gauge(
            "tiny_sd_gateway_queue_length", "Queued generations of all gateways on this database.", registry=registry
        )
        self.processing = Gauge(
            "tiny_sd_gateway_processing", "Generations under way in all gateways on this database.", registry=registry
        )
        self.credits = Counter(
            "tiny_sd_gateway_credits_charged", "Credits charged for pictures.", ["api"], registry=registry
        )
        for api in Api:
            self.in_flight.labels(api)  # 0 is a value, too

    def generation_ended(self, generation: Generation, outcome: str, seconds: float) -> None:
        """Count one run; ``outcome`` as :class:`tiny_sd_gateway.runner.Ending` has it."""
        self.generations.labels(generation.api, outcome).inc()
        if outcome == "completed":
            self.generation_seconds.labels(generation.api).observe(seconds)
            self.credits.labels(generation.api).inc(float(Decimal(generation.price) / money.MILLI))

    def exposition(self, depth: Depth | None) -> bytes:
        """All of it, as Prometheus reads it; ``depth`` of the queue, None if it cannot be told now."""
        if depth:
            self.queue_length.set(depth.queued)
            self.processing.set(depth.processing)
        return generate_latest(self._registry)
