"""For those who run the gateway: is it alive, is it ready, what does it do; and the licence that binds its users."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from tiny_sd_gateway import answers, generations
from tiny_sd_gateway.errors import Refusal
from tiny_sd_gateway.faults import DatabaseUnavailable
from tiny_sd_gateway.licence import USE_RESTRICTIONS
from tiny_sd_gateway.service import service_of

router = APIRouter(tags=["operations"])

_RETRY_S = 5


class State(BaseModel):
    """How the gateway is."""

    status: str


@router.get("/healthz")
async def alive() -> State:
    """Answers as long as the process does; says nothing of Triton or the database."""
    return State(status="ok")


@router.get("/readyz", responses=answers.refusals())
async def ready(request: Request) -> State:
    """Whether pictures can be made here: 503 with the reason if not.

    Asks the database and Triton each time, and at least once a minute has Triton begin a picture.
    """
    service = service_of(request)
    problem = "the gateway is stopping" if service.stopping else await service.health.problem()
    if problem:
        raise Refusal(503, f"not ready: {problem}", retry_after=_RETRY_S)
    return State(status="ok")


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Metrics of this process, and the length of the queue, for Prometheus."""
    service = service_of(request)
    try:
        depth = await generations.depth(service.database)
    except DatabaseUnavailable:
        depth = None
    return Response(service.metrics.exposition(depth), media_type=CONTENT_TYPE_LATEST)


@router.get("/license", response_class=PlainTextResponse)
async def license() -> str:
    """The use restrictions of the model's licence, which bind everybody who uses this service."""
    return USE_RESTRICTIONS
