"""Triton's HTTP protocol: JSON in; JSON, or server-sent events of JSON, out."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, ClassVar

import httpx2

from tiny_sd_client._faults import fault, unreachable
from tiny_sd_client._transport import TLS, Address, Inputs, Outputs
from tiny_sd_client.errors import ServerFault, TinySDError, Unavailable
from tiny_sd_client.parameters import InvalidParameter

_CONNECT_S = 10.0  # seconds for a connection to stand; how long to wait for answers is decided by the client
_SUSPECTS: dict[int, type[TinySDError]] = {
    HTTPStatus.BAD_REQUEST: InvalidParameter,
    HTTPStatus.BAD_GATEWAY: Unavailable,  # this and the next two: by Triton, or a proxy in front of it
    HTTPStatus.SERVICE_UNAVAILABLE: Unavailable,
    HTTPStatus.GATEWAY_TIMEOUT: Unavailable,
}


class HttpTransport:
    """An HTTP client.

    Every request has a connection of its own: an idle one would keep Triton from stopping for its whole exit timeout.
    """

    base64: ClassVar[bool] = True

    def __init__(self, address: Address) -> None:
        self._url = address.url
        self._client = httpx2.AsyncClient(
            # Triton would spend time on compressing pictures, which are compressed.
            headers={"Accept-Encoding": "identity", **address.headers},
            verify=_ssl_context(address.tls),
            timeout=httpx2.Timeout(None, connect=_CONNECT_S),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def call(self, model: str, inputs: Inputs) -> Outputs:
        """Ask ``model`` for one answer."""
        with self._faults():
            response = await self._client.post(f"{self._url}/v2/models/{model}/generate", json=inputs)
        return self._outputs(self._body(response))

    async def stream(
        self, model: str, inputs: Inputs, request_id: str, timeout: float | None
    ) -> AsyncGenerator[Outputs, None]:
        """Ask ``model`` for a stream of answers."""
        body: dict[str, Any] = dict(inputs)
        if request_id:
            body["id"] = request_id
        if timeout is not None:
            body["timeout"] = round(timeout * 1e6)
        url = f"{self._url}/v2/models/{model}/generate_stream"
        with self._faults():
            async with self._client.stream("POST", url, json=body) as response:
                if not response.is_success:
                    await response.aread()
                    self._body(response)
                async for event in httpx2.EventSource(response, max_event_size=None):
                    yield self._outputs(event.data)

    async def status(self) -> tuple[bool, str]:
        """Whether the server is ready, and its version."""
        with self._faults():
            ready = await self._client.get(f"{self._url}/v2/health/ready")
            server = await self._client.get(f"{self._url}/v2")
        return ready.is_success, str(self._parsed(self._body(server)).get("version", ""))

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    def _body(self, response: httpx2.Response) -> str:
        """The text of a response. Raises the error that it stands for, if it is one."""
        if response.is_success:
            return response.text
        raise fault(_error_message(response), self._url, _SUSPECTS.get(response.status_code, ServerFault))

    def _outputs(self, text: str) -> Outputs:
        answer = self._parsed(text)
        if "error" in answer:
            raise fault(str(answer["error"]), self._url)
        # Triton takes a tensor of a single value out of its list.
        return {name: value if isinstance(value, list) else [value] for name, value in answer.items()}

    def _parsed(self, text: str) -> dict[str, Any]:
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ServerFault(f"{self._url}: answers, but not as Triton does: {text[:200]!r}")
        return answer

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (httpx2.SSEError, httpx2.DecodingError) as error:  # a page where events should be, say
            raise ServerFault(f"{self._url}: answers, but not as Triton does: {error}") from error
        except httpx2.InvalidURL as error:  # a host that no name service can be asked for
            raise ServerFault(f"{self._url}: {error}") from error
        except httpx2.TransportError as error:
            raise unreachable(str(error) or type(error).__name__, self._url) from error


def _error_message(response: httpx2.Response) -> str:
    """Triton's own words: ``{"error": "..."}``, which generate_stream sends as an event."""
    try:
        return str(json.loads(response.text.removeprefix("data:"))["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}: {response.text[:200]}".strip().rstrip(":")


def _ssl_context(tls: TLS) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca) if tls.ca else httpx2.create_ssl_context()
    if tls.certificate and tls.key:
        context.load_cert_chain(tls.certificate, tls.key)
    return context
