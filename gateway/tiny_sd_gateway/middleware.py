"""What every request goes through: its id, its log line, its metrics, a limit on its body, and nothing that escapes."""

from __future__ import annotations

import time
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tiny_sd_gateway.errors import INTERNAL, Refusal, response_to
from tiny_sd_gateway.metrics import Metrics

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_LEFT = 499
_QUIET = ("/healthz", "/readyz", "/metrics")

_log = structlog.get_logger("tiny_sd_gateway")


class Observed:
    """Gives a request its id, counts and logs it, and answers 500 for what nobody has caught.

    The log has the route, not the path, which may hold the id of a picture; and neither headers nor bodies.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()
        code = 0

        async def observed(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault("x-request-id", request_id)
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, observed)
            except ClientDisconnect:
                code = _LEFT
            except Exception:  # noqa: BLE001 - whatever it is, the caller gets an answer
                _log.exception("request broke")
                if not code:
                    await response_to(scope["path"], Refusal(500, INTERNAL), request_id)(scope, receive, observed)
            finally:
                self._count(scope, code, time.perf_counter() - began)

    def _count(self, scope: Scope, code: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(route, method, code).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        log = _log.debug if route in _QUIET else _log.info
        key = scope["state"].get("key_id")
        log("request", method=method, route=route, code=code, seconds=round(seconds, 4), key=key)


class BodyLimit:
    """Refuses request bodies of more than ``limit`` bytes, before they are read where they tell their length."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with its body limited."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        too_long = announced.isdecimal() and (len(announced) > 18 or int(announced) > self._limit)
        received = 0

        async def limited() -> Message:
            nonlocal received
            if too_long:
                raise self._refusal()
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._refusal()
            return message

        await self._app(scope, limited, send)

    def _refusal(self) -> Refusal:
        return Refusal(413, f"body: is too long; allowed: {self._limit} bytes")
