"""Triton's gRPC protocol: one stream for each generation."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, ClassVar

import grpc
import grpc.aio
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc

from tiny_sd_client._faults import fault
from tiny_sd_client._transport import TLS, Address, Inputs, Outputs
from tiny_sd_client._wire import DATATYPES
from tiny_sd_client.errors import Cancelled, DeadlineExceeded, ServerFault, TinySDError, Unavailable
from tiny_sd_client.parameters import InvalidParameter

# No keep-alive pings: Triton answers those that come more often than every five minutes by closing the connection.
# The heartbeats of a stream are the sign of life.
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # How often to look for a server that was away is decided by the retries, not by the channel's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Behind a name with several addresses, such as a headless service's, each server gets its share. Who is there is
    # looked up again when a connection ends, which gRPC by itself would do every 30 s at most.
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.dns_min_time_between_resolutions_ms", 5000),
)
_CONTENTS = {
    "BYTES": "bytes_contents",
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
}
_SUSPECTS: dict[grpc.StatusCode, type[TinySDError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidParameter,
    grpc.StatusCode.ALREADY_EXISTS: InvalidParameter,  # the job id
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}
# How a proxy ends the calls of a server that died; gRPC's code for that may be UNKNOWN or INTERNAL.
_LOST = re.compile(r"RST_STREAM|Stream removed")


class GrpcTransport:
    """A gRPC channel."""

    base64: ClassVar[bool] = False

    def __init__(self, address: Address) -> None:
        self._url = address.url
        self._metadata = tuple((name.lower(), value) for name, value in address.headers.items())
        self._channel = (
            grpc.aio.secure_channel(address.authority, _credentials(address.tls), options=_OPTIONS)
            if address.secure
            else grpc.aio.insecure_channel(address.authority, options=_OPTIONS)
        )
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        # Triton's stream takes many requests; we send one. As gRPC knows this, the request goes out with the call: a
        # message of its own may meet a call that has ended already, and then gRPC hides why it has.
        self._stream = self._channel.unary_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )

    async def call(self, model: str, inputs: Inputs) -> Outputs:
        """Ask ``model`` for one answer."""
        try:
            return self._outputs(await self._stub.ModelInfer(_request(model, inputs), metadata=self._metadata))
        except grpc.aio.AioRpcError as error:
            raise self._fault(error) from None

    async def stream(
        self, model: str, inputs: Inputs, request_id: str, timeout: float | None
    ) -> AsyncGenerator[Outputs, None]:
        """Ask ``model`` for a stream of answers."""
        request = _request(model, inputs, request_id)
        if timeout is not None:
            request.parameters["timeout"].int64_param = round(timeout * 1e6)
        # Not with `triton_grpc_error`: it gives errors their status codes, but Triton logs one of its own for each.
        answers = self._stream(request, metadata=self._metadata)
        failure: TinySDError | None = None
        try:
            async for answer in answers:
                if answer.error_message:
                    failure = fault(answer.error_message, self._url)  # the last answer; the stream ends by itself
                else:
                    yield self._outputs(answer.infer_response)
        except grpc.aio.AioRpcError as error:
            raise failure or self._fault(error) from None
        finally:
            answers.cancel()
        if failure:
            raise failure

    async def status(self) -> tuple[bool, str]:
        """Whether the server is ready, and its version."""
        try:
            ready = await self._stub.ServerReady(service_pb2.ServerReadyRequest(), metadata=self._metadata)
            server = await self._stub.ServerMetadata(service_pb2.ServerMetadataRequest(), metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise self._fault(error) from None
        return ready.ready, server.version

    async def close(self) -> None:
        """Cancel what is under way and close the channel."""
        await self._channel.close()

    def _outputs(self, response: Any) -> Outputs:
        try:
            result = InferResult(response)
            return {output.name: result.as_numpy(output.name).ravel().tolist() for output in response.outputs}
        except (AttributeError, TypeError, ValueError) as error:  # of tensors that are none
            raise ServerFault(f"{self._url}: answers, but not as Triton does: {error}") from error

    def _fault(self, error: grpc.aio.AioRpcError) -> TinySDError:
        message = error.details() or f"gRPC status {error.code().name}"
        suspect = Unavailable if _LOST.search(message) else _SUSPECTS.get(error.code(), ServerFault)
        return fault(message, self._url, suspect)


def _request(model: str, inputs: Inputs, request_id: str = "") -> Any:
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    for name, value in inputs.items():
        tensor = request.inputs.add(name=name, datatype=DATATYPES[name], shape=[1, 1])
        contents = getattr(tensor.contents, _CONTENTS[tensor.datatype])
        contents.append(value.encode() if isinstance(value, str) else value)
    return request


def _credentials(tls: TLS) -> grpc.ChannelCredentials:
    ca, key, certificate = (path and Path(path).read_bytes() for path in (tls.ca, tls.key, tls.certificate))
    return grpc.ssl_channel_credentials(ca, key, certificate)
