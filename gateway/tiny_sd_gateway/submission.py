"""From a checked request to pictures, for callers who wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from tiny_sd_client.parameters import parse
from tiny_sd_gateway import generations, money
from tiny_sd_gateway.generations import Api, Claim, Generation, Idempotency, NewPicture, Order, State
from tiny_sd_gateway.keys import Key
from tiny_sd_gateway.run import Finished, Run
from tiny_sd_gateway.runner import stopping
from tiny_sd_gateway.service import Service

T = TypeVar("T")

_FIRST_LOOK_S = 0.1
_LONGEST_LOOK_S = 1.0


def order(
    service: Service,
    key: Key,
    api: Api,
    slug: str,
    values: Mapping[str, object],
    *,
    idempotency_key: str | None = None,
    form: str = "",
) -> Order:
    """What is asked for, with its price and its seed.

    values: documented parameters, as :func:`tiny_sd_gateway.body.documented` gives them
    form: what else of the request makes a difference to the answer

    Raises InvalidParameter.
    """
    given = parse(values, service.settings.sizes)
    idempotency = None
    if idempotency_key is not None:
        # By what was given: a seed drawn later is no part of the request.
        idempotency = Idempotency.of(idempotency_key, api.value, slug, given.model_dump(mode="json"), form)
    price = money.price(given, service.settings.credits_per_picture)
    return Order(key.id, api, slug, given.resolved(), price, idempotency)


async def finished(service: Service, request: Request, order: Order, *, keep: bool = False) -> Finished:
    """Make the pictures, or fetch those that the same Idempotency-Key has made or is making.

    keep: whether they can be fetched later as well; they can if there is an Idempotency-Key

    A caller who leaves meanwhile breaks the generation off and gets the credits back. Raises Refusal, GatewayError, and
    ClientDisconnect.
    """
    while True:
        begun = await begin(service, order)
        if isinstance(begun, Claim):
            run = service.runner.start(begun, keep=keep or order.idempotency is not None)
            try:
                return await while_connected(request.receive, run.result())
            finally:
                run.leave()
        if earlier := await while_connected(request.receive, _earlier(service, begun)):
            return earlier
        await asyncio.sleep(_FIRST_LOOK_S)


async def begin(service: Service, order: Order) -> Claim | Generation:
    """Reserve the credits and take the generation up; or the earlier one of the same Idempotency-Key."""
    if service.stopping:
        raise stopping()
    return await generations.begin(service.database, order, service.owner, service.settings.lease_s)


async def started(service: Service, order: Order, *, preview_every: int) -> Run:
    """Start a generation to be followed. Whoever gets it must leave it in the end."""
    begun = await begin(service, order)
    assert isinstance(begun, Claim), "without an Idempotency-Key every generation is a new one"
    return service.runner.start(begun, preview_every=preview_every, keep=False)


async def while_connected(receive: Receive, awaited: Awaitable[T]) -> T:
    """What ``awaited`` gives. Raises ClientDisconnect, and cancels it, when the caller leaves before."""
    waiting = asyncio.ensure_future(awaited)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientDisconnect
        return waiting.result()
    finally:
        for task in (waiting, leaving):
            task.cancel()
        await asyncio.gather(waiting, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _earlier(service: Service, generation: Generation) -> Finished | None:
    """The pictures of an earlier generation, once it has them; None if it came to nothing, or they are gone."""
    look = _FIRST_LOOK_S
    while not generation.state.ended:
        await asyncio.sleep(look)
        look = min(_LONGEST_LOOK_S, look * 1.5)
        generation = await generations.find(service.database, generation.key_id, generation.id)
    if generation.state is not State.COMPLETED:
        return None
    kept = await generations.pictures_of(service.database, generation.key_id, generation.id)
    pictures = tuple(NewPicture(picture.seed, picture.media_type, picture.data) for picture in kept)
    return Finished(generation, pictures) if pictures else None
