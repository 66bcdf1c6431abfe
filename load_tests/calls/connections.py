"""The connections of one process: each is opened when the first caller needs it, and shared by all."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from load_tests.calls.answers import Call
from load_tests.calls.gateway import Gateway
from load_tests.calls.triton_grpc import TritonGrpc
from load_tests.calls.triton_http import TritonHttp


class Connections:
    """To the servers at these URLs; ``api_key`` is the gateway's."""

    def __init__(self, grpc_url: str, http_url: str, gateway_url: str, api_key: str) -> None:
        self._grpc_url = grpc_url
        self._http_url = http_url
        self._gateway_url = gateway_url
        self._api_key = api_key

    @cached_property
    def grpc(self) -> TritonGrpc:
        """Triton's gRPC endpoint."""
        return TritonGrpc(self._grpc_url)

    @cached_property
    def http(self) -> TritonHttp:
        """Triton's HTTP endpoint."""
        return TritonHttp(self._http_url)

    @cached_property
    def gateway(self) -> Gateway:
        """The REST gateway."""
        return Gateway(self._gateway_url, self._api_key)

    def close(self) -> None:
        """Close those that were opened."""
        for name in ("grpc", "http", "gateway"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()


TRANSPORTS: dict[str, Callable[[Connections], Call]] = {
    "grpc": lambda connections: connections.grpc.unary,
    "stream": lambda connections: connections.grpc.stream,
    "generate": lambda connections: connections.http.generate,
    "infer": lambda connections: connections.http.infer,
    "rest": lambda connections: connections.gateway.wait,
    "queue": lambda connections: connections.gateway.queue,
}
"""How a request is sent, by the name of the transport."""
GATEWAY = ("rest", "queue")
"""Those that go to the gateway, and need a key."""
