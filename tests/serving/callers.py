"""Ways to call the server, as its users would with nothing but public clients; and its metrics."""

from __future__ import annotations

import base64
import json
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import requests
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from prometheus_client.parser import text_string_to_metric_families

DTYPES = {
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
_NUMPY = {
    "BYTES": np.object_,
    "INT32": np.int32,
    "FP32": np.float32,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "FP64": float,
}
OUTPUTS = ("image", "seeds", "parameters")


@dataclass(frozen=True)
class Answer:
    """A generation as it came back; ``images`` are file bytes."""

    images: list[bytes]
    seeds: list[int]
    parameters: dict[str, Any]


def tensor(kind: Any, name: str, value: object, dtype: str | None = None, shape: tuple[int, ...] = (1, 1)) -> Any:
    """One input tensor for ``kind``, tritonclient's gRPC or HTTP module."""
    dtype = dtype or DTYPES[name]
    if isinstance(value, str):
        value = value.encode()
    tensor = kind.InferInput(name, shape, dtype)
    tensor.set_data_from_numpy(np.full(shape, value, dtype=_NUMPY[dtype]))
    return tensor


def grpc(url: str, *, timeout_us: int | None = None, **parameters: object) -> Answer:
    """Call ``tiny_sd`` by unary gRPC."""
    with triton_grpc.InferenceServerClient(url) as client:
        inputs = [tensor(triton_grpc, name, value) for name, value in parameters.items()]
        return _answer(client.infer("tiny_sd", inputs, timeout=timeout_us), parameters)


def http_infer(url: str, *, timeout_us: int | None = None, **parameters: object) -> Answer:
    """Call ``tiny_sd`` by HTTP ``infer``."""
    with _http_client(url) as client:
        inputs = [tensor(triton_http, name, value) for name, value in parameters.items()]
        return _answer(client.infer("tiny_sd", inputs, timeout=timeout_us), parameters)


def http_generate(url: str, **parameters: object) -> requests.Response:
    """Call ``tiny_sd`` by HTTP ``generate``: flat JSON."""
    return requests.post(f"http://{url}/v2/models/tiny_sd/generate", json=parameters, timeout=300)


def generated(response: requests.Response) -> Answer:
    """The answer of :func:`http_generate`."""
    body = response.json()
    assert response.status_code == 200, body
    listed = {name: body[name] if isinstance(body[name], list) else [body[name]] for name in OUTPUTS}
    images = [base64.b64decode(image) for image in listed["image"]]
    return Answer(images, listed["seeds"], json.loads(listed["parameters"][0]))


def grpc_stream(url: str, *, id: str = "", **parameters: object) -> Iterator[dict[str, Any]]:
    """Call ``tiny_sd_stream`` by a gRPC stream of its own; yields each event's outputs. Closing it cancels the call."""
    answers: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    with triton_grpc.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        inputs = [tensor(triton_grpc, name, value) for name, value in parameters.items()]
        client.async_stream_infer("tiny_sd_stream", inputs, request_id=id)
        try:
            while True:
                result, error = answers.get(timeout=300)
                if error:
                    raise error
                names = [output.name for output in result.get_response().outputs]
                event = {name: result.as_numpy(name)[0] for name in names}
                yield {
                    name: values if name in ("preview", "image", "seeds") else values.item()
                    for name, values in event.items()
                }
                if "image" in event:
                    return
        finally:
            client.stop_stream(cancel_requests=True)


def http_stream(url: str, **parameters: object) -> Iterator[dict[str, Any]]:
    """Call ``tiny_sd_stream`` by ``generate_stream``; yields each event's JSON. Closing it drops the connection."""
    path = f"http://{url}/v2/models/tiny_sd_stream/generate_stream"
    with requests.post(path, json=parameters, stream=True, timeout=300) as response:
        for line in response.iter_lines():
            if line:
                yield json.loads(line.removeprefix(b"data: "))


def jobs(url: str, **inputs: str) -> requests.Response:
    """Call ``jobs`` by HTTP ``generate``; by default for the list of all."""
    return requests.post(f"http://{url}/v2/models/jobs/generate", json={"action": "list", **inputs}, timeout=60)


def job_ids(url: str) -> list[str]:
    """The ids of the generations in flight."""
    ids = jobs(url).json()["job_id"]
    return ids if isinstance(ids, list) else [ids]


def metrics(url: str) -> dict[str, float]:
    """The server's metrics, one number for each ``name`` or ``name:model`` (and ``:le`` for histogram buckets)."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(requests.get(f"http://{url}/metrics", timeout=60).text):
        for sample in family.samples:
            key = ":".join(
                [sample.name, *(sample.labels[label] for label in ("model", "le") if label in sample.labels)]
            )
            values[key] = values.get(key, 0.0) + sample.value
    return values


class Change(dict[str, float]):
    """By how much each metric has changed since this was made, as of the last look."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._before = metrics(url)

    def look(self) -> None:
        self.update({name: value - self._before.get(name, 0.0) for name, value in metrics(self._url).items()})

    def once(self, name: str, least: float) -> float:
        """A counter's change as soon as it is so much: Triton counts a request a moment after it has answered it."""
        end = time.monotonic() + 60
        while self[name] < least and time.monotonic() < end:
            time.sleep(0.05)
            self.look()
        return self[name]


@contextmanager
def change_of(url: str) -> Iterator[Change]:
    """By how much each metric changes inside the block; filled in at its end."""
    change = Change(url)
    yield change
    change.look()


def _answer(result: Any, sent: dict[str, object]) -> Answer:
    images = result.as_numpy("image")[0].tolist()
    if sent.get("base64", True):
        images = [base64.b64decode(image) for image in images]
    return Answer(images, result.as_numpy("seeds")[0].tolist(), json.loads(result.as_numpy("parameters")[0, 0]))


@contextmanager
def _http_client(url: str) -> Iterator[Any]:
    client = triton_http.InferenceServerClient(url, network_timeout=300, connection_timeout=60)
    try:
        yield client
    finally:
        client.close()
