"""What the protocols have in common: how a call can end, and what counts as its pictures."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence

from tiny_sd_client.parameters import ImageFormat, Parameters

Mark = Callable[[str], None]
"""Notes that something has come before the final image; its name is one of ``figures.MARKS``."""
Call = Callable[[Parameters, Mark], int]
"""Sends one request and receives its pictures: so many bytes. Raises :class:`NotAnswered`."""

_ENSEMBLE = re.compile(r"^(in ensemble '[^']*', )+")
_SIGNATURES = {
    ImageFormat.JPEG: re.compile(rb"\xff\xd8\xff"),
    ImageFormat.PNG: re.compile(rb"\x89PNG\r\n\x1a\n"),
    ImageFormat.WEBP: re.compile(rb"RIFF....WEBP", re.DOTALL),
}
_SIGNATURE_CHARACTERS = 16  # of base64: 12 bytes


class NotAnswered(Exception):
    """No pictures. The message is one of few, so that equal ones can be counted."""


class Refused(NotAnswered):
    """The server is full, or the key's rate limit is reached: come back later."""

    def __init__(self) -> None:
        super().__init__("refused: busy")


class Failed(NotAnswered):
    """Another answer than pictures."""


class Lost(NotAnswered):
    """No answer at all."""


def error(message: str) -> NotAnswered:
    """What a message of Triton's stands for; its first word tells."""
    message = _ENSEMBLE.sub("", message)
    # Numbers differ from one message to the next.
    return Refused() if message.startswith("busy: ") else Failed(re.sub(r"\d+", "#", message)[:200])


def check_files(files: Sequence[bytes], parameters: Parameters) -> int:
    """The size of all files together. Raises Failed unless there is one for each picture, in its format."""
    _check(files, parameters)
    return sum(map(len, files))


def check_base64(texts: Sequence[str], parameters: Parameters) -> int:
    """As :func:`check_files`, for files in base64. Only their beginnings are decoded; the result is in characters."""
    _check([base64.b64decode(text[:_SIGNATURE_CHARACTERS]) for text in texts], parameters)
    return sum(map(len, texts))


def _check(beginnings: Sequence[bytes], parameters: Parameters) -> None:
    signature = _SIGNATURES[parameters.image_format]
    if len(beginnings) != parameters.samples or not all(map(signature.match, beginnings)):
        raise Failed("the answer does not hold the pictures that were asked for")
