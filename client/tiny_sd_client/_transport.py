"""How a client reaches a server: the address, and the two verbs that a transport must know."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}
_HEADER_NAME = re.compile(r"[A-Za-z0-9._-]+")
_HEADER_VALUE = re.compile(r"[ -~]*")
_ALLOWED_URLS = "grpc://host:port, grpcs://host:port, http://host:port/path, https://host:port/path"

Inputs = Mapping[str, str | int | float | bool]
"""Values for a model, each a tensor of shape [1, 1]."""
Outputs = Mapping[str, list[Any]]
"""A model's answer, each tensor flat; text is bytes or str, as the transport has it."""


class Transport(Protocol):
    """A connection to one server. All its methods raise TinySDError and nothing else for what the other side does."""

    base64: ClassVar[bool]
    """Whether picture files must travel as base64 text."""

    async def call(self, model: str, inputs: Inputs) -> Outputs:
        """Ask ``model`` for one answer."""
        ...

    def stream(
        self, model: str, inputs: Inputs, request_id: str, timeout: float | None
    ) -> AsyncGenerator[Outputs, None]:
        """Ask ``model`` for a stream of answers; closing the generator tells the server that nobody listens any more.

        request_id: empty for none
        timeout: seconds after which the server shall give up; None for never
        """
        ...

    async def status(self) -> tuple[bool, str]:
        """Whether the server is ready for requests, and its version."""
        ...

    async def close(self) -> None:
        """End all that is under way, and the connection."""
        ...


@dataclass(frozen=True)
class TLS:
    """Files for an encrypted connection, in PEM format.

    ``ca``: the authorities to trust, instead of the usual ones. ``certificate`` and ``key`` identify this client, where
    the server asks for it. Raises ValueError for a missing file and for a certificate without its key.
    """

    ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("TLS: a client certificate needs its key, and a key its certificate")
        for path in (self.ca, self.certificate, self.key):
            if path is not None and not Path(path).is_file():
                raise ValueError(f"TLS: no such file: {path}")


@dataclass(frozen=True)
class Address:
    """Where a server is and how to speak to it.

    ``authority`` is ``host:port``, with an IPv6 host in brackets; ``path`` is empty or begins with a slash.
    """

    scheme: str
    authority: str
    path: str
    headers: Mapping[str, str] = field(repr=False)  # they may hold credentials
    tls: TLS

    @property
    def url(self) -> str:
        """The whole URL, its port included."""
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def secure(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in ("grpcs", "https")


def address(url: str, headers: Mapping[str, str] | None, tls: TLS | None) -> Address:
    """Take a URL apart. Raises ValueError, which names what is allowed, for one or headers that cannot be used."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _unusable(url, "") from None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise _unusable(url, "")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise _unusable(url, ", without user, query or fragment (credentials go into headers)")
    path = parts.path.rstrip("/")
    if path and parts.scheme.startswith("grpc"):
        raise _unusable(url, ", without a path for gRPC")
    if tls and parts.scheme in ("grpc", "http"):
        raise ValueError(f"TLS: {url!r} is not encrypted; allowed: grpcs:// and https://")
    for name, value in (headers or {}).items():
        if parts.scheme.startswith("grpc") and name.lower().endswith("-bin"):
            raise ValueError(f"headers: cannot send {name!r}; gRPC keeps names that end in -bin for bytes")
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            # The value stays out of the message: it may be a key.
            raise ValueError(f"headers: cannot send {name!r}; allowed: names of letters, digits and -_., ASCII values")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    authority = f"{host}:{_DEFAULT_PORTS[parts.scheme] if port is None else port}"
    return Address(parts.scheme, authority, path, dict(headers or {}), tls or TLS())


def connect(address: Address) -> Transport:
    """Make the transport for ``address``, within the event loop that it will be used in. Only that one is imported."""
    if address.scheme.startswith("grpc"):
        from tiny_sd_client._grpc import GrpcTransport  # noqa: PLC0415 -- each takes a fraction of a second to load

        return GrpcTransport(address)
    from tiny_sd_client._http import HttpTransport  # noqa: PLC0415

    return HttpTransport(address)


def _unusable(url: str, condition: str) -> ValueError:
    return ValueError(f"URL: got {url!r}; allowed: {_ALLOWED_URLS}{condition}")
