"""The gateway as a process: its logs, its signals, its end, its traces."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
import requests
from books import let_all_leases_run_out
from gateway_process import Process, get, post
from grpc_triton import GrpcTriton
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from running_gateway import SLUG, wait_until

V1, V2 = f"/v1/{SLUG}", f"/v2/{SLUG}"


@pytest.fixture
def triton() -> Iterator[GrpcTriton]:
    with GrpcTriton() as triton:
        yield triton


def test_it_finishes_what_runs_when_it_is_told_to_stop(tmp_path: Path, triton: GrpcTriton) -> None:
    with Process(f"sqlite:///{tmp_path / 'gateway.db'}", triton.url, tmp_path / "log") as gateway:
        key = gateway.read_key()
        triton.held.add("held")
        with ThreadPoolExecutor() as threads:
            under_way = threads.submit(post, gateway, V1, key, prompt="held")
            triton.wait_for(lambda: "held" in triton.prompts)
            gateway.process.send_signal(signal.SIGTERM)
            wait_until(lambda: any(line["event"] == "stopping" for line in gateway.lines()))
            triton.held.clear()
            assert under_way.result().status_code == 200
        assert gateway.process.wait(60) == 0
        assert [line["outcome"] for line in gateway.lines() if line["event"] == "generation"] == ["completed"]
        assert not [line for line in gateway.lines() if line["level"] in ("error", "critical")]


def test_what_was_accepted_survives_its_death(database_url: str, tmp_path: Path, triton: GrpcTriton) -> None:
    environment = {"TINY_SD_GATEWAY_LEASE_S": "60", "TINY_SD_GATEWAY_SWEEP_S": "0.5"}
    triton.held.add("held")
    with Process(database_url, triton.url, tmp_path / "log", **environment) as first:
        key = first.read_key()
        accepted = [post(first, V2, key, prompt=prompt).json()["request_id"] for prompt in ("held", "quick", "held")]
        with ThreadPoolExecutor() as threads:
            waiting = threads.submit(post, first, V1, key, prompt="held")
            triton.wait_for(lambda: triton.prompts.count("held") == 3)
            first.process.kill()
            assert isinstance(waiting.exception(), requests.ConnectionError)
    triton.wait_for(lambda: triton.left.count("held") == 3)  # nobody listens any more, and Triton knows
    triton.held.clear()
    asyncio.run(let_all_leases_run_out(database_url))
    with Process(database_url, triton.url, tmp_path / "log2", **environment) as second:

        def statuses() -> list[str]:
            return [get(second, f"/v2/requests/{name}/status", key).json()["status"] for name in accepted]

        wait_until(lambda: statuses() == ["COMPLETED"] * 3, 120)
        wait_until(lambda: get(second, "/v1/credits", key).json()["remaining_credits"] == 997.0)
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(60) == 0


def test_a_trace_goes_through_the_gateway_to_triton(tmp_path: Path, triton: GrpcTriton) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    database = f"sqlite:///{tmp_path / 'gateway.db'}"
    with Collector() as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with Process(database, triton.url, tmp_path / "log", **environment) as gateway:
            key = gateway.read_key()
            headers = {"traceparent": f"00-{trace}-{parent}-01"}
            assert post(gateway, V1, key, headers, prompt="a private circle").status_code == 200
            handed_on = triton.metadata["ModelStreamInfer"]["traceparent"]
            assert handed_on.split("-")[1] == trace
            triton.held.add("held")
            answer = post(gateway, "/v1/generations/stream", key, headers, stream=True, prompt="held")
            next(answer.iter_lines(chunk_size=1))
            answer.close()
            triton.wait_for(lambda: "held" in triton.left)  # which tracing must not get in the way of
            wait_until(
                lambda: (
                    collector.spans(trace).keys() >= {f"POST {V1}", "/inference.GRPCInferenceService/ModelStreamInfer"}
                )
            )
        spans = collector.spans(trace)
    assert spans[f"POST {V1}"].parent_span_id.hex() == parent
    assert spans["/inference.GRPCInferenceService/ModelStreamInfer"].trace_id.hex() == trace
    assert "private" not in str(spans)
    assert key not in str(spans)


def test_without_a_collector_nothing_is_handed_on(tmp_path: Path, triton: GrpcTriton) -> None:
    with Process(f"sqlite:///{tmp_path / 'gateway.db'}", triton.url, tmp_path / "log") as gateway:
        headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        assert post(gateway, V1, gateway.read_key(), headers, prompt="a circle").status_code == 200
        assert "traceparent" not in triton.metadata["ModelStreamInfer"]


class Collector:
    """An OpenTelemetry collector, as a context manager."""

    def __enter__(self) -> Self:
        received = self._received = []  # type: ignore[var-annotated]

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                received.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def spans(self, trace: str) -> dict[str, Any]:
        """Those of one trace, by name."""
        return {
            span.name: span
            for request in list(self._received)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if span.trace_id.hex() == trace
        }
