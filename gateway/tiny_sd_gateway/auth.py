"""Who asks: the API key of a request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from tiny_sd_gateway import keys
from tiny_sd_gateway.errors import NO_KEY, Refusal
from tiny_sd_gateway.keys import Key
from tiny_sd_gateway.service import Service, service_of

_HEADER = APIKeyHeader(name="x-api-key", auto_error=False, description="The documented way to send a key.")
_BEARER = HTTPBearer(auto_error=False, description="The same key, as OpenAI's clients send it.")


async def _caller(
    request: Request,
    header: Annotated[str | None, Security(_HEADER)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
) -> Key:
    secret = header or (bearer and bearer.credentials)
    if not secret:
        raise Refusal(401, NO_KEY)
    key = await keys.find(service_of(request).database, secret)
    request.state.key_id = key.id
    return key


async def _paying_caller(key: Annotated[Key, Depends(_caller)], request: Request) -> Key:
    service: Service = service_of(request)
    await service.limits.hit(key)
    return key


Caller = Annotated[Key, Depends(_caller)]
"""The key of a request. 401 without one."""
PayingCaller = Annotated[Key, Depends(_paying_caller)]
"""The key of a request that asks for pictures: counts against the key's rate limit. 401, 429."""
