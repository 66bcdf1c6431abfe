"""Which error a server's message stands for. The message tells the kind, on every transport."""

from __future__ import annotations

import re

from tiny_sd_client.errors import Busy, Cancelled, DeadlineExceeded, ServerFault, TinySDError, Unavailable, UnknownJob
from tiny_sd_client.parameters import InvalidParameter

_ENSEMBLE = re.compile(r"^in ensemble '[^']*', ")
_NAMED = re.compile(r"(\w+): (.+)", re.DOTALL)
_KINDS: dict[str, type[TinySDError]] = {
    "overdue": DeadlineExceeded,
    "cancelled": Cancelled,
    "unknown_job": UnknownJob,
}
_BUSY = re.compile(r"(\d+) of (\d+) .*come back in (\d+(?:\.\d+)?) s", re.DOTALL)
# Triton's own words for a server or a model that comes or goes.
_COMING_OR_GOING = re.compile(
    r"server is stopping|not at ready state|no available versions|server (is )?not ready", re.I
)
# Reads like a bad connection, but trying again does not help: the server is not the one it should be, in the words of
# OpenSSL and BoringSSL; or, in Triton's, the caller lacks a header.
_TO_STAY = re.compile(r"CERTIFICATE_VERIFY_FAILED|hostname mismatch|peer name|restricted, expecting header", re.I)


def fault(message: str, url: str, suspect: type[TinySDError] = InvalidParameter) -> TinySDError:
    """The error for a server's ``message``.

    suspect: what the transport's status code says of it. It decides where the message is none of ours, and only where
        it allows for an InvalidParameter can a message be one
    """
    message = _ENSEMBLE.sub("", message).strip()
    word, text = named.groups() if (named := _NAMED.fullmatch(message)) else ("", message)
    if word == "busy":
        in_flight, limit, seconds = numbers.groups() if (numbers := _BUSY.match(text)) else (0, 0, 0)
        return Busy(text, retry_after=float(seconds), in_flight=int(in_flight), limit=int(limit))
    if word in _KINDS:
        return _KINDS[word](text)
    if suspect is InvalidParameter and word:
        return InvalidParameter(word, text)
    if suspect is Unavailable or _COMING_OR_GOING.search(message):
        return unreachable(message, url)
    kind = ServerFault if suspect is InvalidParameter else suspect
    return kind(f"{url}: {message}")


def unreachable(reason: str, url: str) -> TinySDError:
    """The error for a connection that could not be made, or was lost."""
    kind = ServerFault if _TO_STAY.search(reason) else Unavailable
    return kind(f"{url}: {reason}")
