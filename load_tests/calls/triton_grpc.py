"""Triton by gRPC: unary calls of the ensemble, and streams with progress and previews."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc

from load_tests.calls.answers import Failed, Lost, Mark, check_files, error
from load_tests.calls.tensors import tensors
from tiny_sd_client.parameters import Parameters

_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Behind a name with several addresses, such as a headless service's, each of them gets its share.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_CONTENTS = {
    "BYTES": "bytes_contents",
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
}
_PREVIEW_EVERY = 5
# What Triton answers by itself with the code that a broken connection has, too.
_GOING = ("server is stopping", "not at ready state", "not ready")


class TritonGrpc:
    """A channel to Triton, for all callers of a process.

    One is enough for as many calls as there are, and must be: in gevent, each channel, and each call that is made to
    block, waits in one of gevent's ten native threads. The eleventh would hear of its answer when a thread is free,
    seconds late; so calls are not made to block, but give a future.
    """

    def __init__(self, url: str) -> None:
        scheme, _, authority = url.partition("://")
        self._channel = (
            grpc.secure_channel(authority, grpc.ssl_channel_credentials(), options=_OPTIONS)
            if scheme == "grpcs"
            else grpc.insecure_channel(authority, options=_OPTIONS)
        )
        self._infer = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelInfer.future
        # The request goes out with the call, as one of a kind, which saves a greenlet for each stream.
        self._stream = self._channel.unary_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )

    def unary(self, parameters: Parameters, mark: Mark) -> int:
        """A unary call of the ensemble."""
        with _faults():
            call = self._infer(_request("tiny_sd", parameters))
            try:
                answer = InferResult(call.result())
            finally:
                call.cancel()  # where this was broken off; else without effect
        return check_files(answer.as_numpy("image").ravel().tolist(), parameters)

    def stream(self, parameters: Parameters, mark: Mark) -> int:
        """A stream: the first progress is the first event with a step that is done."""
        events = self._stream(_request("tiny_sd_stream", parameters, preview_every=_PREVIEW_EVERY))
        image, failure = None, None
        try:
            with _faults():
                for message in events:  # to the end: to Triton, a stream that is left before is cancelled
                    if message.error_message:
                        failure = error(message.error_message)
                        continue
                    event = InferResult(message.infer_response)
                    if event.as_numpy("step").item() > 0:
                        mark("first progress")
                    if event.as_numpy("preview") is not None:
                        mark("first preview")
                    image = event.as_numpy("image")
        finally:
            events.cancel()
        if failure:
            raise failure
        if image is None:
            raise Lost("the stream ended without pictures")
        return check_files(image.ravel().tolist(), parameters)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def _request(model: str, parameters: Parameters, preview_every: int | None = None) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, datatype, value in tensors(parameters, base64=False, preview_every=preview_every):
        tensor = request.inputs.add(name=name, datatype=datatype, shape=[1, 1])
        getattr(tensor.contents, _CONTENTS[datatype]).append(value.encode() if isinstance(value, str) else value)
    return request


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as fault:
        code, message = fault.code(), fault.details() or ""
        answer = error(message)
        if code is not grpc.StatusCode.UNAVAILABLE or not isinstance(answer, Failed):
            raise answer from None
        if message.startswith("overdue: ") or any(words in message.lower() for words in _GOING):
            raise answer from None
        raise Lost(f"connection: {answer}") from None
    except grpc.FutureCancelledError:
        raise Lost("connection: the call was cancelled") from None
