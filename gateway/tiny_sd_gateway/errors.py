"""What goes wrong, as HTTP tells it: one place turns every exception into a refusal, and a refusal into an answer.

Most paths answer ``{"error": "<message>"}``, as the documented API does; those of OpenAI's dialect answer in its shape.
No message of ours holds a traceback, a key, or where Triton and the database are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from tiny_sd_client import Busy, Cancelled, DeadlineExceeded, InvalidParameter, TinySDError, Unavailable
from tiny_sd_client.parameters import Parameters
from tiny_sd_gateway.faults import (
    DatabaseUnavailable,
    GatewayError,
    IdempotencyConflict,
    InsufficientCredits,
    LeaseLost,
    UnknownGeneration,
    UnknownKey,
)

NO_KEY = "no API key: send it as x-api-key, or as Authorization: Bearer"
WRONG_KEY = "this API key is unknown or revoked"
CANCELLED = "cancelled: somebody cancelled the generation"
INTERNAL = "internal error"

_OPENAI_PATHS = re.compile(r"^/v1/(images/|models(/|$))")
_RETRY_S = 5.0


class Refusal(Exception):
    """An answer other than the one that was asked for.

    ``parameter`` is what the caller should change, ``retry_after`` the seconds after which the same request may do.
    """

    def __init__(
        self, status: int, message: str, *, parameter: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.parameter = parameter
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Those that belong to the status."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def refusal_of(error: BaseException) -> Refusal:
    """What a caller is told about ``error``; everything that is not the caller's affair becomes an internal error."""
    for kind, refuse in _REFUSALS.items():
        if isinstance(error, kind):
            return refuse(error)
    return Refusal(500, INTERNAL)


def response_to(path: str, refusal: Refusal, request_id: str) -> Response:
    """The answer to a request for ``path``, in the dialect of that path."""
    if _OPENAI_PATHS.match(path):
        return _openai_response(refusal, request_id)
    body: dict[str, object] = {"error": str(refusal)}
    if refusal.parameter:
        body["parameter"] = refusal.parameter
    if refusal.status == 500:
        body["request_id"] = request_id
    return _json(refusal.status, body, refusal.headers)


def openai_error(refusal: Refusal) -> dict[str, object]:
    """The error object of OpenAI's dialect, in answers and in streams."""
    kind, code = "invalid_request_error", None
    match refusal.status:
        case 401:
            code = "invalid_api_key"
        case 404:
            code = "model_not_found" if refusal.parameter == "model" else "not_found"
        case 406:
            kind = code = "insufficient_quota"
        case 429:
            kind, code = "requests", "rate_limit_exceeded"
        case status if status >= 500:
            kind = "server_error"
        case _ if refusal.parameter:
            code = "invalid_value"
    return {"message": str(refusal), "type": kind, "param": refusal.parameter, "code": code}


async def answer_error(request: Request, error: Exception) -> Response:
    """FastAPI's exception handler for everything that has a status of its own."""
    allowed = {}
    if isinstance(error, HTTPException) and error.status_code == 405:
        error.headers = allowed = {"Allow": _allowed_methods(request, error)}
    response = response_to(request.scope["path"], refusal_of(error), request.state.request_id)
    response.headers.update(allowed)
    return response


HANDLED: tuple[type[Exception], ...] = (Refusal, GatewayError, TinySDError, HTTPException, RequestValidationError)
"""What :func:`answer_error` is installed for. The rest ends in the middleware, which logs it."""


def _openai_response(refusal: Refusal, request_id: str) -> Response:
    error = openai_error(refusal)
    if refusal.status >= 500:
        error["message"] = f"{refusal} (request {request_id})"
    # What OpenAI answers to an invalid value and to an account without money.
    status = {422: 400, 406: 429}.get(refusal.status, refusal.status)
    headers = refusal.headers
    if refusal.status in (406, 409):
        headers["x-should-retry"] = "false"  # the package openai retries all of 409 and 429 unless told otherwise
    return _json(status, {"error": error}, headers)


def _invalid(error: InvalidParameter) -> Refusal:
    if error.parameter not in Parameters.model_fields:
        return Refusal(500, INTERNAL)  # nothing that the caller has given
    return Refusal(422, str(error), parameter=error.parameter)


def _malformed(error: RequestValidationError) -> Refusal:
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return Refusal(422, f"{name}: {first['msg']}", parameter=name)


_REFUSALS: dict[type[BaseException], Callable[[Any], Refusal]] = {
    Refusal: lambda refusal: refusal,
    InvalidParameter: _invalid,
    Busy: lambda busy: Refusal(429, f"the server is full: {busy}", retry_after=busy.retry_after),
    DeadlineExceeded: lambda _: Refusal(504, "overdue: the pictures were not finished in time; nothing was charged"),
    Cancelled: lambda _: Refusal(409, CANCELLED),
    LeaseLost: lambda _: Refusal(409, CANCELLED),
    Unavailable: lambda _: Refusal(503, "the server that makes the pictures cannot be reached", retry_after=_RETRY_S),
    UnknownKey: lambda _: Refusal(401, WRONG_KEY),
    InsufficientCredits: lambda error: Refusal(406, str(error)),
    IdempotencyConflict: lambda error: Refusal(409, str(error), parameter="Idempotency-Key"),
    UnknownGeneration: lambda _: Refusal(404, "no such request, or it is not yours"),
    DatabaseUnavailable: lambda _: Refusal(503, "the gateway's database cannot be reached", retry_after=_RETRY_S),
    RequestValidationError: _malformed,
    HTTPException: lambda error: Refusal(error.status_code, _in_words(error)),
}


def _json(status: int, body: object, headers: dict[str, str]) -> Response:
    # A caller's text may hold half a surrogate pair, which UTF-8 cannot.
    content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    return Response(content, status, headers, "application/json")


def _allowed_methods(request: Request, error: HTTPException) -> str:
    """All methods of a URL; the error itself knows those of one of its routes."""
    documented = request.app.openapi()["paths"].get(getattr(request.scope.get("route"), "path", None))
    return ", ".join(sorted(documented)).upper() if documented else (error.headers or {}).get("Allow", "")


def _in_words(error: HTTPException) -> str:
    match error.status_code:
        case 404:
            return "no such URL"
        case 405:
            return f"wrong method; allowed: {(error.headers or {}).get('Allow', '')}"
    return str(error.detail)
