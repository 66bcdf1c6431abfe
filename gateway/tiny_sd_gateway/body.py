"""What callers send: JSON, multipart/form-data or urlencoded, with numbers as numbers or as text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from fastapi import Request
from starlette.datastructures import UploadFile

from tiny_sd_client.parameters import Parameters
from tiny_sd_gateway.errors import Refusal

_MAX_PARTS = 100
_MAX_PART_BYTES = 64 * 1024
_MAX_IGNORED_SHOWN = 20
_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,40}\s*")
_NUMBER = re.compile(r"\s*[+-]?([0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(e[+-]?[0-9]{1,3})?\s*", re.I)
_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
_IDEMPOTENCY_KEY = re.compile(r"[ -~]{1,255}")


async def read_values(request: Request) -> dict[str, object]:
    """The fields of a request's body by name, as JSON has them. Fields that are null count as left out.

    Raises Refusal for a body that is no JSON object and no form.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        values = await _form(request)
    else:
        body = await request.body()
        # curl -d calls everything a form, JSON too.
        if media_type == "application/x-www-form-urlencoded" and not body.lstrip().startswith(b"{"):
            values = await _form(request)
        else:
            values = _json(body)
    return {name: value for name, value in values.items() if value is not None}


def documented(values: Mapping[str, object]) -> dict[str, object]:
    """The documented parameters among ``values``, with text turned into numbers and booleans where it means such."""
    return {name: coerced(values[name], kind) for name, kind in _KINDS.items() if name in values}


def coerced(value: object, kind: type | None) -> object:
    """``value`` as ``kind``, if that is what it means; else as it is, for validation to refuse."""
    if kind is bool:
        return _boolean(value)
    if kind is int:
        if isinstance(value, str) and _INTEGER.fullmatch(value):
            return int(value)
        return int(value) if isinstance(value, float) and value.is_integer() else value
    if kind is float and isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    return value


def ignored_header(names: Iterable[str]) -> dict[str, str]:
    """The response header that names what was sent but has no meaning here; none for nothing."""
    shown = [quote(name[:64], safe="", errors="replace") or '""' for name in names]
    if len(shown) > _MAX_IGNORED_SHOWN:
        shown = [*shown[:_MAX_IGNORED_SHOWN], f"and-{len(shown) - _MAX_IGNORED_SHOWN}-more"]
    return {"x-ignored-parameters": ", ".join(shown)} if shown else {}


def idempotency_key(request: Request) -> str | None:
    """The header Idempotency-Key. Raises Refusal for one that cannot be used."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        allowed = "allowed: 1 to 255 printable ASCII characters"
        raise Refusal(400, f"Idempotency-Key: got {len(key)} characters; {allowed}", parameter="Idempotency-Key")
    return key


def refuse_idempotency_key(request: Request) -> None:
    """For streams, which cannot be told again. Raises Refusal if there is one."""
    if "idempotency-key" in request.headers:
        raise Refusal(400, "Idempotency-Key: got one; allowed: none for streams", parameter="Idempotency-Key")


def _kind(annotation: object) -> type | None:
    return annotation if isinstance(annotation, type) and annotation in (bool, int, float) else None


_KINDS = {name: _kind(field.annotation) for name, field in Parameters.model_fields.items()}


def _boolean(value: object) -> object:
    if isinstance(value, str):
        return _BOOLEANS.get(value.strip().lower(), value)
    return bool(value) if isinstance(value, (int, float)) and value in (0, 1) else value


def _json(body: bytes) -> dict[str, object]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "body: is not JSON; allowed: a JSON object, or a form") from None
    if not isinstance(values, dict):
        raise Refusal(400, f"body: got a JSON {_json_kind(values)}; allowed: a JSON object")
    return values


def _json_kind(value: object) -> str:
    kinds = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")


async def _form(request: Request) -> dict[str, object]:
    async with request.form(max_files=_MAX_PARTS, max_fields=_MAX_PARTS, max_part_size=_MAX_PART_BYTES) as form:
        values: dict[str, object] = {}
        for name, value in form.multi_items():
            if isinstance(value, UploadFile) and name in Parameters.model_fields:
                raise Refusal(422, f"{name}: got a file; allowed: text", parameter=name)
            values[name] = value
        return values
