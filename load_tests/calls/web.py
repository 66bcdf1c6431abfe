"""HTTP with connections that stay open, as many as there are requests under way, and without retries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import urllib3

from load_tests.calls.answers import Failed, Lost

_CONNECT_S = 10.0
_KEPT = 256
"""Connections that are kept open for the next requests; more of them are opened when needed, and closed again."""


class Web:
    """A server that speaks HTTP and JSON, for all callers of a process."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self._url = url.rstrip("/")
        self._pool = urllib3.PoolManager(
            maxsize=_KEPT,
            block=False,
            retries=False,
            timeout=urllib3.Timeout(connect=_CONNECT_S, read=None),
            headers=headers,
        )

    def post(self, path: str, body: object) -> tuple[int, Any]:
        """Status and JSON of the answer. Raises Lost without an answer, Failed for one that is no JSON."""
        return self._json("POST", path, body)

    def get(self, path: str) -> tuple[int, Any]:
        """As :meth:`post`. ``path`` may be a whole URL."""
        return self._json("GET", path)

    def fetch(self, path: str) -> bytes:
        """A file. ``path`` may be a whole URL. Raises Lost without an answer, Failed unless it is 200."""
        status, data = self._ask("GET", path)
        if status != 200:
            raise Failed(f"HTTP {status} for a picture")
        return data

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _json(self, method: str, path: str, body: object | None = None) -> tuple[int, Any]:
        status, data = self._ask(method, path, body)
        try:
            return status, json.loads(data)
        except ValueError:
            raise Failed(f"HTTP {status} without JSON") from None

    def _ask(self, method: str, path: str, body: object | None = None) -> tuple[int, bytes]:
        url = path if "://" in path else self._url + path
        try:
            answer = self._pool.request(method, url, json=body) if body is not None else self._pool.request(method, url)
        except urllib3.exceptions.HTTPError as fault:
            raise Lost(f"connection: {type(fault).__name__}") from None
        return answer.status, answer.data
