"""The images' start scripts on a real Triton and a real gateway, with a real Prometheus that asks both.

What cannot be seen here: a GPU, whose metrics Triton then does not have, and the containers themselves.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.grpc as triton_grpc
import yaml
from compose_project import ROOT, mounts, services, tool
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from watching import RULES, alerts, metrics, questions

from local_server import LocalServer
from local_server.install import find_triton
from tiny_sd_client import Client

DOCKER = ROOT / "deploy" / "docker"
SIDE = 128
SIZES = f"{SIDE},512,1024"
SMALL = {"img_width": SIDE, "img_height": SIDE}
LONG = {"num_inference_steps": 100, "scheduler": "Heun", "img_width": 1024, "img_height": 1024}
"""Takes far longer than it takes to leave."""
OF_GPUS = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes", "nv_gpu_power_usage"}
"""As Triton's documentation lists them (docs/user_guide/metrics.md)."""
OF_PROMETHEUS = {"up", "ALERTS"}


class Container(LocalServer):
    """Triton as the image starts it, on this machine's ports and with this machine's backend."""

    def command(self, binary: Path, flags: Sequence[str] = ()) -> list[str]:
        ports = {"http": self.ports.http, "grpc": self.ports.grpc, "metrics": self.ports.metrics}
        here = [f"--{name}-port={port}" for name, port in ports.items()]
        prefix = f"--backend-config=python,shm-region-prefix-name={self.shared_memory_prefix}"
        return [str(DOCKER / "start-triton.sh"), *flags, *here, prefix]


@dataclass
class Collector:
    """What an OpenTelemetry collector gets: for each trace, its spans' (service, name, model)."""

    _traces: dict[str, set[tuple[str, str, str]]] = field(default_factory=lambda: defaultdict(set))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Collector:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces":
                    collector.take(self.headers["content-type"], body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, kind: str, body: bytes) -> None:
        with self._lock:
            for trace, *span in _of_json(body) if "json" in kind else _of_protobuf(body):
                self._traces[trace].add((span[0], span[1], span[2]))

    def traces(self) -> list[set[tuple[str, str, str]]]:
        """What has come so far: more may come at any time."""
        with self._lock:
            return [set(spans) for spans in self._traces.values()]

    def with_span(self, service: str, name: str) -> list[set[tuple[str, str, str]]]:
        """The traces in which ``service`` has a span whose name begins with ``name``."""
        return [spans for spans in self.traces() if any(s == service and n.startswith(name) for s, n, _ in spans)]


def _of_json(body: bytes) -> Iterator[tuple[str, str, str, str]]:
    for resource in json.loads(body)["resourceSpans"]:
        service = _values(resource["resource"]["attributes"])["service.name"]
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                model = _values(span.get("attributes", [])).get("triton.model_name", "")
                yield span["traceId"].lower(), service, span["name"], model


def _values(attributes: list[dict[str, Any]]) -> dict[str, str]:
    return {each["key"]: str(each["value"].get("stringValue", "")) for each in attributes}


def _of_protobuf(body: bytes) -> Iterator[tuple[str, str, str, str]]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        (service,) = [each.value.string_value for each in resource.resource.attributes if each.key == "service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield span.trace_id.hex(), service, span.name, ""


@dataclass(frozen=True)
class Live:
    """All that runs, after it has done some work."""

    triton: Container
    collector: Collector
    prometheus: str
    gateway: str
    key: str
    inspected: Path
    well: float | None = None
    """A moment, in seconds since 1970, at which Prometheus had seen all the work and both servers had answered it."""

    def draw(self) -> None:
        values = {"prompt": "a small red circle", **SMALL, "base64": False}
        path = f"{self.gateway}/v1/tinysd1.5-txt2img"
        assert requests.post(path, json=values, headers={"x-api-key": self.key}, timeout=120).status_code == 200

    def ask(self, question: str, at: float | None = None) -> list[float]:
        """The answers as they were ``at`` a moment, else as they are now, when a server may just not have answered."""
        asked = {"query": question} if at is None else {"query": question, "time": str(at)}
        answer = requests.get(f"{self.prometheus}/api/v1/query", asked, timeout=60).json()
        assert answer["status"] == "success", f"{question}: {answer}"
        return [float(series["value"][1]) for series in answer["data"]["result"]]


@pytest.fixture(scope="module")
def live(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    binary = find_triton(tmp_path_factory.mktemp("triton")).binary
    with Collector() as collector:
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        environment = {"TINY_SD_CHECKPOINT": str(checkpoint), "TINY_SD_SIZES": SIZES, "TMPDIR": str(folder), **traced}
        path = f"{binary.parent}{os.pathsep}{os.environ['PATH']}"
        triton = Container(env={**environment, "PATH": path}, log_path=folder / "triton.log")
        with triton, _gateway(triton, folder, traced) as (gateway, key), _prometheus(triton, gateway, folder) as url:
            everything = Live(triton, collector, url, gateway, key, folder)
            _work(everything)
            yield replace(everything, well=_well(everything))
            triton.kill()  # a process of it is dead by now, and a stop would wait for that


def _work(live: Live) -> None:
    """Pictures over every way, one that is cancelled, and enough of it before and after Prometheus' first looks."""
    live.draw()
    seen = ("tiny_sd_gateway_credits_charged_total", "tiny_sd_unet_steps_total")  # one of each server
    _until(lambda: all(live.ask(metric) for metric in seen))
    live.draw()
    with triton_grpc.InferenceServerClient(live.triton.grpc_url) as client:
        for name, value in (("unary", b"a small red circle"), ("again", b"a small red circle")):
            tensors = [_tensor("prompt", "BYTES", value), *(_tensor(side, "INT32", SIDE) for side in SMALL)]
            client.infer("tiny_sd", tensors, request_id=name)
    with Client(f"grpc://{live.triton.grpc_url}") as client:
        with closing(client.stream("leaves", **LONG)) as events:
            next(event for event in events if event.step)
        _until(lambda: not client.jobs())
    for path in ("/healthz", "/readyz"):
        assert requests.get(live.gateway + path, timeout=60).status_code == 200
    _until(lambda: live.ask("sum(tiny_sd_jobs_cancelled_total)") == [1.0])


def _well(live: Live) -> float:
    """See :attr:`Live.well`."""
    (done,) = live.ask("vector(time())")

    def answered(since: float, at: float | None = None) -> bool:
        return live.ask("min(timestamp(up) * up)", at)[0] > since

    while True:
        _until(lambda: answered(done + 2))
        (at,) = live.ask("vector(time())")
        # Each server is asked once at a time: all that was asked before is written then, and the past does not change.
        _until(partial(answered, at))
        if answered(done + 2, at):
            return at


def _tensor(name: str, kind: str, value: object) -> Any:
    tensor = triton_grpc.InferInput(name, [1, 1], kind)
    tensor.set_data_from_numpy(np.array([[value]], np.object_ if kind == "BYTES" else np.int32))
    return tensor


def _until(condition: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.1)


class _Running:
    """A process that is ready when its output says so, as a context manager."""

    def __init__(self, command: list[str | Path], log: Path, sign: str, environment: dict[str, str]) -> None:
        self._command, self._log, self._sign, self._environment = command, log, sign, environment

    def __enter__(self) -> re.Match[str]:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env={**os.environ, **self._environment}
            )
        try:
            _until(lambda: self._process.poll() is not None or bool(re.search(self._sign, self._log.read_text())))
            found = re.search(self._sign, self._log.read_text())
            assert found, self._log.read_text()
        except BaseException:
            self.__exit__()
            raise
        return found

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


class _gateway:  # noqa: N801 -- used as a function
    """The gateway as its image starts it, with the database's URL in a file; its address, and a key."""

    def __init__(self, triton: Container, folder: Path, traced: dict[str, str]) -> None:
        (folder / "database_url").write_text(f"sqlite:///{folder / 'gateway.db'}")
        image = (DOCKER / "gateway.Dockerfile").read_text()
        settings = {
            **dict(re.findall(r"\b(OTEL_\w+)=(\S+)", image)),
            "TINY_SD_GATEWAY_DATABASE_URL_FILE": str(folder / "database_url"),
            "TINY_SD_GATEWAY_TRITON_URL": f"grpc://{triton.grpc_url}",
            "TINY_SD_GATEWAY_SIZES": SIZES,
            "PATH": f"{Path(tool('tiny-sd-gateway')).parent}{os.pathsep}{os.environ['PATH']}",
            **traced,
        }
        command: list[str | Path] = [DOCKER / "start-gateway.sh", "run", "--port", "0"]
        self._running = _Running(command, folder / "gateway.log", r"Playground: (http://\S+)/#key=(\S+)", settings)

    def __enter__(self) -> tuple[str, str]:
        found = self._running.__enter__()
        return found[1], found[2]

    def __exit__(self, *_: object) -> None:
        self._running.__exit__()


class _prometheus:  # noqa: N801 -- used as a function
    """Prometheus with the configuration that compose mounts, but for the addresses; its own address."""

    def __init__(self, triton: Container, gateway: str, folder: Path) -> None:
        mounted = mounts(services()["prometheus"])
        config = yaml.safe_load(mounted["/etc/prometheus/prometheus.yml"].read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(RULES)]
        here = {"tiny-sd-triton": triton.metrics_url, "tiny-sd-gateway": gateway.removeprefix("http://")}
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": [here[job["job_name"]]]}] if job["job_name"] in here else []
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command: list[str | Path] = [
            tool("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            "--web.listen-address=127.0.0.1:0",
        ]
        sign = r'"Listening on".* address=(\S+)[\s\S]*Server is ready'
        self._running = _Running(command, folder / "prometheus.log", sign, {})

    def __enter__(self) -> str:
        return f"http://{self._running.__enter__()[1]}"

    def __exit__(self, *_: object) -> None:
        self._running.__exit__()


# --- Metrics -----------------------------------------------------------------------------------------


def test_rules_and_dashboard_ask_for_metrics_that_there_are(live: Live) -> None:
    scraped = set(requests.get(f"{live.prometheus}/api/v1/label/__name__/values", timeout=60).json()["data"])
    asked = {name for alert in alerts().values() for name in metrics(alert["expr"])}
    asked |= {name for _, question in questions() for name in metrics(question)}
    assert asked - scraped - OF_PROMETHEUS <= OF_GPUS
    assert {"tiny_sd_unet_call_rows_bucket", "nv_inference_request_success"} <= asked & scraped


def test_every_panel_has_something_to_show(live: Live) -> None:
    for title, question in questions():
        values = live.ask(question, live.well)
        if metrics(question) <= OF_GPUS:
            continue
        assert values, f"{title}: {question}"
        assert not any(math.isnan(value) for value in values), f"{title}: {question}"


def test_the_dashboard_tells_what_happened(live: Live) -> None:
    shown = {title: live.ask(question, live.well) for title, question in questions()}
    assert set(shown["In flight"]) == {0.0}
    assert shown["Alerts"] == [0.0]
    assert all(0 < value <= 1 for value in shown["Hits in the text cache"]), (
        "the empty negative prompt was there already"
    )
    (mean,) = live.ask("sum(tiny_sd_unet_call_rows_sum) / sum(tiny_sd_unet_call_rows_count)", live.well)
    assert mean == 2, "guided pictures, one after the other"


def test_no_alert_has_a_reason_while_all_is_well(live: Live) -> None:
    assert live.ask('nv_inference_request_success{model="tiny_sd"}', live.well)[0] >= 4
    for name, alert in alerts().items():
        assert live.ask(alert["expr"], live.well) == [], name


def test_prometheus_takes_tritons_metrics_for_text(live: Live) -> None:
    answer = requests.get(f"http://{live.triton.metrics_url}/metrics", timeout=60)
    assert answer.headers["content-type"].startswith("text/plain"), "Prometheus 3 refuses what has no known type"


# --- Traces ------------------------------------------------------------------------------------------


def test_a_request_to_the_ensemble_has_spans_of_every_stage(live: Live) -> None:
    stages = {"tiny_sd", "tokenizer", "text_encoder", "unet", "vae_decoder"}

    def whole() -> list[Any]:
        return [spans for spans in live.collector.traces() if stages <= {model for _, _, model in spans}]

    _until(lambda: bool(whole()))
    assert {service for service, _, _ in whole()[0]} == {"tiny-sd-triton"}


def test_a_request_to_the_gateway_is_one_trace_with_tritons_part_of_it(live: Live) -> None:
    def joined() -> list[Any]:
        of_gateway = live.collector.with_span("tiny-sd-gateway", "POST /v1/")
        return [spans for spans in of_gateway if "tiny_sd_stream" in {model for _, _, model in spans}]

    _until(lambda: bool(joined()))
    assert {service for service, _, _ in joined()[0]} == {"tiny-sd-gateway", "tiny-sd-triton"}


# --- Its end -----------------------------------------------------------------------------------------


def test_the_script_knows_tritons_process(live: Live) -> None:
    assert int((live.inspected / "tiny-sd" / "pid").read_text()) == live.triton.pid


def test_a_dead_model_process_is_a_reason_for_an_alert(live: Live) -> None:
    (unet,) = [process for process in live.triton.process_tree() if "/unet/1/model.py" in " ".join(process.cmdline())]
    unet.kill()
    failures, _, _ = alerts()["TinySDModelProcessDead"]["expr"].partition("unless")
    values = {"prompt": "a small red circle", **SMALL}

    def fires() -> bool:
        answer = requests.post(f"http://{live.triton.http_url}/v2/models/tiny_sd/generate", json=values, timeout=120)
        assert answer.status_code != 200
        return bool(live.ask(failures))

    _until(fires)
    assert requests.get(f"http://{live.triton.http_url}/v2/health/ready", timeout=60).status_code == 200, "it says"
