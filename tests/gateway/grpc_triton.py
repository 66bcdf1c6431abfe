"""Triton's gRPC interface with nothing behind it, for gateways that run as processes of their own."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import triton_to_np_dtype

STEPS = 4


class GrpcTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A context manager. Draws at once, but prompts in ``held`` get no further than their first step."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.seconds_per_step = 0.0
        self.prompts: list[str] = []
        self.left: list[str] = []
        self.metadata: dict[str, dict[str, str]] = {}
        """Of the latest call of each method."""
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        self._server = grpc.server(ThreadPoolExecutor(max_workers=64))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.url = f"grpc://127.0.0.1:{port}"
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.held.clear()
        self._server.stop(grace=None).wait()

    def wait_for(self, condition: Any, seconds: float = 60) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, seconds), "it did not come to pass"

    def ServerReady(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - Triton's names
        return service_pb2.ServerReadyResponse(ready=True)

    def ServerMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """The model ``jobs``, with no jobs."""
        self._note("ModelInfer", context)
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, kind in (("job_id", "BYTES"), ("stage", "BYTES"), ("step", "INT32"), ("steps", "INT32")):
            _add(answer, name, kind, [])
        for name in ("seconds", "seconds_left"):
            _add(answer, name, "FP64", [])
        _add(answer, "max_in_flight", "INT32", [32])
        return answer

    def ModelStreamInfer(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        """The model ``tiny_sd_stream``."""
        self._note("ModelStreamInfer", context)
        request = next(requests)
        inputs = {tensor.name: _value(tensor) for tensor in request.inputs}
        prompt = inputs["prompt"].decode()
        with self._changed:
            self.prompts.append(prompt)
            self._changed.notify_all()
        if not context.add_callback(lambda: self._gone(prompt)):
            self._gone(prompt)  # before anybody could be told
        for step in range(STEPS + 1):
            time.sleep(self.seconds_per_step)
            last = step == STEPS
            answer = service_pb2.ModelInferResponse(model_name=request.model_name)
            for name, value in (("job_id", request.id.encode()), ("stage", b"done" if last else b"denoising")):
                _add(answer, name, "BYTES", [value])
            _add(answer, "step", "INT32", [inputs["num_inference_steps"] * step // STEPS])
            _add(answer, "steps", "INT32", [inputs["num_inference_steps"]])
            _add(answer, "seconds", "FP64", [0.1 * step])
            _add(answer, "seconds_left", "FP64", [-1.0])
            if last:
                self._draw(answer, inputs)
            yield service_pb2.ModelStreamInferResponse(infer_response=answer)
            while step == 1 and prompt in self.held and context.is_active():
                threading.Event().wait(0.02)

    def _draw(self, answer: Any, inputs: dict[str, Any]) -> None:
        told = {name: value.decode() if isinstance(value, bytes) else value for name, value in inputs.items()}
        parameters = {name: value for name, value in told.items() if name not in ("base64", "preview_every")}
        seeds = [inputs["seed"] + i for i in range(inputs["samples"])]
        _add(answer, "image", "BYTES", [f"picture of {told['prompt']} from {seed}".encode() for seed in seeds])
        _add(answer, "seeds", "INT64", seeds)
        _add(answer, "parameters", "BYTES", [json.dumps(parameters).encode()])

    def _note(self, method: str, context: grpc.ServicerContext) -> None:
        self.metadata[method] = {name: str(value) for name, value in context.invocation_metadata()}

    def _gone(self, prompt: str) -> None:
        with self._changed:
            self.left.append(prompt)
            self._changed.notify_all()


_FIELDS = {
    "BYTES": "bytes_contents",
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
}


def _value(tensor: Any) -> Any:
    return getattr(tensor.contents, _FIELDS[tensor.datatype])[0]


def _add(answer: Any, name: str, kind: str, values: list[Any]) -> None:
    answer.outputs.add(name=name, datatype=kind, shape=[1, len(values)])
    if kind == "BYTES":
        # Each with its length before it, as Triton writes them.
        raw = b"".join(struct.pack("<I", len(value)) + value for value in values)
    else:
        raw = np.array(values, triton_to_np_dtype(kind)).tobytes()
    answer.raw_output_contents.append(raw)
