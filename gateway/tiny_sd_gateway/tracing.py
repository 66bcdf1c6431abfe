"""OpenTelemetry, where the environment names a collector; then a request's trace goes on through Triton."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Any

from fastapi.telemetry import TelemetryConfig

from tiny_sd_gateway.database import Database

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_NOT_TRACED = ("/healthz", "/readyz", "/metrics", "/v2/pictures/")  # noise; and paths that are secrets


def configured() -> bool:
    """Whether the environment asks for traces."""
    return bool(os.environ.get(ENDPOINT) or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))


def requests() -> TelemetryConfig:
    """How FastAPI traces requests, with whatever provider :func:`start` has set up; without one, not at all."""
    return {
        "metrics": False,
        "logs": False,  # they would hold the messages of exceptions
        "operation_spans": False,
        "auto_configure": False,
        "exclude": _is_not_traced,
    }


def start(database: Database) -> None:
    """Send traces to the collector, by OTLP over HTTP as Triton does, and hand them on to Triton over gRPC.

    To be called before anything is connected. The libraries are loaded here because only who wants traces needs them.
    """
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient  # noqa: PLC0415
    from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor  # noqa: PLC0415
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before our name.
    provider = TracerProvider(resource=Resource({SERVICE_NAME: "tiny-sd-gateway"}).merge(Resource.create()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    GrpcAioInstrumentorClient().instrument()  # type: ignore[no-untyped-call]
    SQLAlchemyInstrumentor().instrument(engine=database.engine.sync_engine)


def _is_not_traced(scope: MutableMapping[str, Any]) -> bool:
    return str(scope.get("path", "")).startswith(_NOT_TRACED)
