"""Files of many prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tiny_sd_client.command.failures import UsageError


@dataclass(frozen=True)
class Wish:
    """One generation that is asked for: documented parameters, and where they stand, for error messages."""

    values: dict[str, object]
    origin: str = ""


def read_wishes(data: bytes, name: str) -> list[Wish]:
    """The generations that the prompt file ``data`` asks for. Raises :class:`UsageError`, with ``name`` and the line.

    A line is a prompt, or a JSON object of documented parameters; empty lines and those that begin with # do not count.
    """
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: is not UTF-8 text") from error
    wishes = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if line and not line.startswith("#"):
            origin = f"{name}, line {number}"
            wishes.append(Wish(_json_object(line, origin) if line.startswith("{") else {"prompt": line}, origin))
    if not wishes:
        raise UsageError(f"{name}: holds no prompts")
    return wishes


def _json_object(line: str, origin: str) -> dict[str, object]:
    try:
        values: dict[str, object] = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{origin}: begins with {{ but is not a JSON object") from error
    return values
