"""The gateway as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from tiny_sd_client import AsyncClient
from tiny_sd_gateway import openai, operations, playground, tracing, v1, v2
from tiny_sd_gateway.answers import EXPOSED_HEADERS
from tiny_sd_gateway.errors import HANDLED, answer_error
from tiny_sd_gateway.middleware import BodyLimit, Observed
from tiny_sd_gateway.service import Service
from tiny_sd_gateway.settings import Settings
from tiny_sd_gateway.triton import Triton

_DESCRIPTION = """\
Text-to-image with Tiny-SD. The documented API is `POST /v1/…`; `/v2/…` queues; `/v1/images/generations` is OpenAI's.

Send your key as `x-api-key` or as `Authorization: Bearer`. Use of the service is bound by [/license](/license).
"""


def create_app(settings: Settings, client: Triton | None = None) -> FastAPI:
    """Make the application; ``client`` stands in for a connection to ``settings.triton_url``."""
    # One attempt each: callers are told to come back, and the queue waits by itself.
    service = Service(settings, client or AsyncClient(settings.triton_url, patience=0))
    if tracing.configured():
        tracing.start(service.database)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPIOffline(  # its /docs needs nothing from elsewhere
        title="Tiny-SD",
        version=version("tiny-sd-gateway"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        telemetry=tracing.requests(),
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        middleware=[
            Middleware(Observed, metrics=service.metrics),
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=EXPOSED_HEADERS,
            ),
            Middleware(BodyLimit, limit=settings.body_limit_bytes),
        ],
        exception_handlers=dict.fromkeys(HANDLED, answer_error),
    )
    app.state.service = service
    for router in (
        v1.router(settings),
        v2.router(settings),
        openai.router(settings),
        playground.router(settings),
        operations.router,
    ):
        app.include_router(router)
    app.openapi_schema = _documentation(app)
    return app


def _documentation(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, without the refusals that FastAPI takes for granted: ours look different."""
    document = app.openapi()
    for methods in document["paths"].values():
        for operation in methods.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document
