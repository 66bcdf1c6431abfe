"""The page at /, and what it asks: a generation to watch, the parameters there are, those inside a picture."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Request, Response, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from tiny_sd_client import InvalidParameter, Progress
from tiny_sd_client.parameters import parse
from tiny_sd_client.pictures import InvalidImage, read_parameters
from tiny_sd_gateway import answers, ledger, submission
from tiny_sd_gateway.auth import Caller, PayingCaller
from tiny_sd_gateway.body import coerced, documented, ignored_header, read_values, refuse_idempotency_key
from tiny_sd_gateway.errors import Refusal, refusal_of
from tiny_sd_gateway.events import EventStream, event
from tiny_sd_gateway.faults import GatewayError
from tiny_sd_gateway.generations import Api
from tiny_sd_gateway.run import Run
from tiny_sd_gateway.service import Service, service_of
from tiny_sd_gateway.settings import Settings

PAGE = Path(__file__).parent / "page"
# No inline script or style, nothing from elsewhere; pictures come as data and blob URLs.
_PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_MAX_PREVIEW_EVERY = 100
_USUAL_PREVIEW_EVERY = 5


class Parameter(BaseModel):
    """A parameter, in the words of JSON Schema."""

    name: str
    type: str
    description: str
    required: bool = False
    default: Any = None
    enum: list[Any] | None = None
    minimum: float | int | None = None
    maximum: float | int | None = None
    max_length: int | None = Field(None, alias="maxLength")


class ParametersBody(BaseModel):
    """What may be asked for."""

    parameters: list[Parameter]
    slugs: list[str]
    credits_per_picture: str = Field(description="Price of 512x512 pixels and 20 steps; others cost in proportion.")


class ParametersInside(BaseModel):
    """What a picture was made with."""

    parameters: dict[str, Any]


def router(settings: Settings) -> APIRouter:
    """The endpoints, and a route for each file of the page."""
    router = APIRouter(tags=["page"])
    schema = answers.parameter_schema(settings.sizes)
    schema["properties"].pop("base64")
    schema["properties"]["preview_every"] = {
        "type": "integer",
        "minimum": 0,
        "maximum": _MAX_PREVIEW_EVERY,
        "default": _USUAL_PREVIEW_EVERY,
        "description": "Denoising steps from one preview to the next; 0 for none.",
    }
    example = {"prompt": "a small red circle", "preview_every": 5}
    router.add_api_route(
        "/v1/generations/stream",
        generate,
        methods=["POST"],
        operation_id="stream",
        response_class=Response,
        responses={
            200: {
                "content": {"text/event-stream": {}},
                "description": "Events `progress`, `preview`, `done`, `error`.",
            },
            **answers.refusals(400, 401, 406, 413, 422, 429, 504),
        },
        openapi_extra=answers.body_documentation(schema, example),
    )
    router.add_api_route(
        "/v1/parameters",
        _parameters(schema, settings),
        methods=["GET"],
        response_model=ParametersBody,
        response_model_exclude_none=True,
    )
    router.add_api_route(
        "/v1/parameters",
        inside,
        methods=["POST"],
        response_model=ParametersInside,
        responses=answers.refusals(400, 401, 413, 422),
    )
    router.add_api_route(
        "/v1/credits", credits, methods=["GET"], response_model=answers.Credits, responses=answers.refusals(401)
    )
    for file in sorted(path for path in PAGE.iterdir() if path.is_file()):
        path = "/" if file.name == "index.html" else f"/{file.name}"
        router.add_api_route(path, _file(file), methods=["GET", "HEAD"], include_in_schema=False)
    return router


async def generate(request: Request, key: PayingCaller) -> Response:
    """Make pictures and tell how far they are, as server-sent events.

    `progress`: job_id, stage, step, steps, seconds, seconds_left. `preview`: images, small JPEG files in base64. At the
    end either `done`: images (b64, seed, media_type), parameters, cost, remaining_credits, infer_time; or `error`:
    status, error, parameter. What goes wrong before the first event is answered as everywhere else. Closing the
    connection cancels the generation and refunds it.
    """
    service = service_of(request)
    refuse_idempotency_key(request)
    sent = await read_values(request)
    values = documented(sent)
    every = coerced(sent.get("preview_every", _USUAL_PREVIEW_EVERY), int)
    if type(every) is not int or not 0 <= every <= _MAX_PREVIEW_EVERY:
        allowed = f"an integer from 0 (no previews) to {_MAX_PREVIEW_EVERY}"
        raise Refusal(422, f"preview_every: allowed: {allowed}", parameter="preview_every")
    order = submission.order(service, key, Api.PAGE, service.settings.slugs[0], values)
    run = await submission.started(service, order, preview_every=every)
    try:
        first = await submission.while_connected(request.receive, run.next_progress())
        if not first:
            await run.result()  # raises
        ignored = ignored_header(name for name in sent if name not in values and name != "preview_every")
        headers = {"link": answers.LICENSE_LINK, "x-request-id": run.generation.id, **ignored}
        return EventStream(run, _events(service, run, first), headers)
    except BaseException:
        run.leave()
        raise


async def inside(request: Request, file: Annotated[UploadFile, File()], key: Caller) -> ParametersInside:
    """The parameters that stand in a picture file, checked: they make the same picture again."""
    data = await file.read()
    try:
        found = parse(await asyncio.to_thread(read_parameters, data), sizes=None)
    except InvalidImage as error:
        raise Refusal(422, f"file: {error}; allowed: a picture made here", parameter="file") from None
    except InvalidParameter as error:
        raise Refusal(422, f"file: holds parameters of something else ({error})", parameter="file") from None
    return ParametersInside(parameters=found.picture())


async def credits(request: Request, key: Caller) -> answers.Credits:
    """What the key has left."""
    left = await ledger.balance(service_of(request).database, key.id)
    return answers.Credits(remaining_credits=answers.credits_number(left))


async def _events(service: Service, run: Run, progress: Progress | None) -> AsyncGenerator[bytes, None]:
    while progress:
        told = {name: getattr(progress, name) for name in ("job_id", "step", "steps", "seconds", "seconds_left")}
        yield event("progress", {**told, "stage": progress.stage.value})
        if progress.previews:
            yield event("preview", {"images": [answers.base64_of(preview) for preview in progress.previews]})
        progress = await run.next_progress()
    try:
        finished = await run.result()
        left = await ledger.balance(service.database, run.generation.key_id)
    except (Refusal, GatewayError) as error:
        refusal = refusal_of(error)
        told = {"status": refusal.status, "error": str(refusal)}
        yield event("error", {**told, "parameter": refusal.parameter} if refusal.parameter else told)
        return
    generation = finished.generation
    yield event(
        "done",
        {
            "job_id": run.lease.job_id,
            "images": [
                {"b64": answers.base64_text(picture), "seed": picture.seed, "media_type": picture.media_type}
                for picture in finished.pictures
            ],
            "parameters": generation.parameters.picture(),
            "cost": answers.credits_number(generation.price),
            "remaining_credits": answers.credits_number(left),
            "infer_time": round(generation.infer_s or 0, 3),
        },
    )


def _parameters(schema: dict[str, Any], settings: Settings) -> Any:
    fields = [
        {**field, "name": name, "required": name in schema["required"]} for name, field in schema["properties"].items()
    ]
    body = ParametersBody(
        parameters=[Parameter.model_validate(field) for field in fields],
        slugs=list(settings.slugs),
        credits_per_picture=f"{settings.credits_per_picture:f}",
    )

    async def parameters() -> ParametersBody:
        """The parameters, their ranges and defaults, as they are on this gateway. Needs no key."""
        return body

    return parameters


def _file(path: Path) -> Any:
    media_type = mimetypes.guess_type(path.name)[0]

    async def page_file() -> FileResponse:
        return FileResponse(path, headers=_PAGE_HEADERS, media_type=media_type)

    return page_file
