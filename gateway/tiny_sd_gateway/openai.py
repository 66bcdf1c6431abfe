"""OpenAI's dialect: images/generations and models, as the package ``openai`` and the tools around it speak it.

The documented parameters are fields here too, under their own names: steps, scheduler, seed and all.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from tiny_sd_client import ImageFormat, InvalidParameter, Progress
from tiny_sd_client.parameters import MAX_SAMPLES
from tiny_sd_gateway import answers, generations, submission
from tiny_sd_gateway.auth import Caller, PayingCaller
from tiny_sd_gateway.body import (
    coerced,
    documented,
    idempotency_key,
    ignored_header,
    read_values,
    refuse_idempotency_key,
)
from tiny_sd_gateway.errors import Refusal, openai_error, refusal_of
from tiny_sd_gateway.events import EventStream, event
from tiny_sd_gateway.faults import GatewayError
from tiny_sd_gateway.generations import Api
from tiny_sd_gateway.run import Finished, Run
from tiny_sd_gateway.service import Service, service_of
from tiny_sd_gateway.settings import Settings

_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_MAX_PARTIAL_IMAGES = 3
_SINCE = 1690848000  # when Tiny-SD was published
_OWN_NAMES = ("model", "n", "size", "response_format", "output_format", "background", "stream", "partial_images")
# Our names for what OpenAI calls otherwise.
_THEIR_NAMES = {"samples": "n", "image_format": "output_format", "img_width": "size", "img_height": "size"}
# Tokens are no measure of ours, but the types of the package openai want some.
_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


class ErrorObject(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorBody(BaseModel):
    """A refusal, as OpenAI words it."""

    error: ErrorObject


class Image(BaseModel):
    """A picture, in one form or the other."""

    b64_json: str | None = None
    url: str | None = None


class ImagesBody(BaseModel):
    """Finished pictures."""

    created: int
    data: list[Image]
    output_format: str
    size: str
    background: Literal["opaque"] = "opaque"
    usage: dict[str, Any] = Field(description="All zeros: nothing is counted in tokens here.")


class Model(BaseModel):
    """A name that ``model`` may have."""

    id: str
    object: Literal["model"] = "model"
    created: int = _SINCE
    owned_by: str = "tiny-sd"


class Models(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


@dataclass(frozen=True)
class _Wishes:
    """A request, in our terms."""

    slug: str
    values: dict[str, object]
    as_url: bool
    stream: bool
    partial_images: int


def router(settings: Settings) -> APIRouter:
    """The dialect's routes."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])
    router.add_api_route(
        "/images/generations",
        generate,
        methods=["POST"],
        operation_id="openai_generate",
        response_class=Response,
        responses={
            200: {
                "model": ImagesBody,
                "description": "The pictures; server-sent events if `stream` is true.",
                "content": {"text/event-stream": {}},
                "headers": answers.header_documentation(),
            },
            **_refusals(400, 401, 404, 409, 413, 429, 504),
        },
        openapi_extra=answers.body_documentation(
            _schema(settings),
            {"model": settings.slugs[0], "prompt": "a small red circle", "n": 1, "size": "512x512"},
            forms=False,
        ),
    )
    router.add_api_route("/models", models, methods=["GET"], response_model=Models, responses=_refusals(401))
    router.add_api_route("/models/{model}", model, methods=["GET"], response_model=Model, responses=_refusals(401, 404))
    return router


async def generate(request: Request, key: PayingCaller) -> Response:
    """As OpenAI's, with the documented parameters as further fields; `n` and `size` go before theirs.

    Streamed pictures are preceded by `partial_images` small previews in JPEG.
    """
    service = service_of(request)
    sent = await read_values(request)
    wishes = _wishes(sent, service.settings)
    if wishes.stream:
        refuse_idempotency_key(request)
    try:
        order = submission.order(
            service,
            key,
            Api.OPENAI,
            wishes.slug,
            wishes.values,
            idempotency_key=idempotency_key(request),
            form="url" if wishes.as_url else "b64_json",
        )
    except InvalidParameter as error:
        raise _in_their_names(error) from None
    ignored = ignored_header(name for name in sent if name not in wishes.values and name not in _OWN_NAMES)
    if not wishes.stream:
        finished = await submission.finished(service, request, order, keep=wishes.as_url)
        headers = {**await answers.headers(service, finished), **ignored}
        body = await _images_body(service, request, finished, wishes.as_url)
        return Response(json.dumps(body), 200, headers, "application/json")
    every = (
        math.ceil(order.parameters.num_inference_steps / (wishes.partial_images + 1)) if wishes.partial_images else 0
    )
    run = await submission.started(service, order, preview_every=every)
    try:
        first = await submission.while_connected(request.receive, run.next_progress())
        if not first:
            await run.result()  # raises
        headers = {"link": answers.LICENSE_LINK, "x-request-id": run.generation.id, **ignored}
        return EventStream(run, _events(service, run, first, wishes.partial_images), headers)
    except BaseException:
        run.leave()
        raise


async def models(request: Request, key: Caller) -> Models:
    """The names that `model` may have; they all mean the same."""
    return Models(data=[Model(id=slug) for slug in service_of(request).settings.slugs])


async def model(request: Request, model: str, key: Caller) -> Model:
    """One of them."""
    return Model(id=_checked_model(model, service_of(request).settings))


def _wishes(sent: Mapping[str, object], settings: Settings) -> _Wishes:
    values = documented(sent)
    values["samples"] = coerced(sent.get("n", values.get("samples", 1)), int)
    values["image_format"] = sent.get("output_format", values.get("image_format", ImageFormat.PNG.value))
    size = sent.get("size", "auto")
    if size != "auto":
        values["img_width"], values["img_height"] = _width_and_height(size, settings)
    if sent.get("background") not in (None, "auto", "opaque"):
        raise _refusal("background", sent["background"], "opaque, auto")
    response_format = sent.get("response_format", "b64_json")
    if response_format not in ("b64_json", "url"):
        raise _refusal("response_format", response_format, "b64_json, url")
    stream = coerced(sent.get("stream", False), bool)
    if not isinstance(stream, bool):
        raise _refusal("stream", stream, "true or false")
    if stream and response_format == "url":
        raise _refusal("response_format", response_format, "b64_json with stream")
    partial = coerced(sent.get("partial_images", 0), int)
    if type(partial) is not int or not 0 <= partial <= _MAX_PARTIAL_IMAGES:
        raise _refusal("partial_images", partial, f"an integer from 0 to {_MAX_PARTIAL_IMAGES}")
    slug = _checked_model(sent.get("model", settings.slugs[0]), settings)
    return _Wishes(slug, values, response_format == "url", stream, partial)


def _width_and_height(size: object, settings: Settings) -> tuple[int, int]:
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match and all(int(side) in settings.sizes for side in match.groups()):
        return int(match[1]), int(match[2])
    sides = ", ".join(map(str, sorted(settings.sizes)))
    raise _refusal("size", size, f"auto, or WIDTHxHEIGHT with each of {sides}")


def _checked_model(name: object, settings: Settings) -> str:
    if isinstance(name, str) and name in settings.slugs:
        return name
    raise Refusal(404, f"model: unknown; allowed: {', '.join(settings.slugs)}", parameter="model")


def _refusal(name: str, given: object, allowed: str) -> Refusal:
    shown = repr(given) if len(repr(given)) <= 40 else f"a {type(given).__name__}"
    return Refusal(422, f"{name}: got {shown}; allowed: {allowed}", parameter=name)


def _in_their_names(error: InvalidParameter) -> Refusal:
    name = _THEIR_NAMES.get(error.parameter, error.parameter)
    return Refusal(422, f"{name}: {error.args[1]}", parameter=name)


async def _images_body(service: Service, request: Request, finished: Finished, as_url: bool) -> dict[str, object]:
    generation = finished.generation
    if as_url:
        kept = await generations.pictures_of(service.database, generation.key_id, generation.id)
        urls = [answers.public_url(service, request, f"/v2/pictures/{picture.id}") for picture in kept]
        data = [{"url": url} for url in urls]
    else:
        data = [{"b64_json": answers.base64_text(picture)} for picture in finished.pictures]
    return {"created": int(generation.created_at.timestamp()), "data": data, "usage": _USAGE, **_look(finished)}


def _look(finished: Finished) -> dict[str, str]:
    parameters = finished.generation.parameters
    return {
        "background": "opaque",
        "output_format": parameters.image_format.value,
        "size": f"{parameters.img_width}x{parameters.img_height}",
    }


async def _events(
    service: Service, run: Run, progress: Progress | None, partial_images: int
) -> AsyncGenerator[bytes, None]:
    parameters = run.generation.parameters
    common = {
        "background": "opaque",
        "quality": "auto",
        "size": f"{parameters.img_width}x{parameters.img_height}",
    }
    told = 0
    while progress:
        if progress.previews and told < partial_images:
            for preview in progress.previews:
                partial = {"b64_json": answers.base64_of(preview), "output_format": "jpeg", "partial_image_index": told}
                yield _typed_event("image_generation.partial_image", {**partial, **common})
            told += 1
        progress = await run.next_progress()
    try:
        finished = await run.result()
    except (Refusal, GatewayError) as error:
        yield event("error", {"type": "error", "error": openai_error(refusal_of(error))})
        return
    for picture in finished.pictures:
        completed = {"b64_json": answers.base64_text(picture), "output_format": parameters.image_format.value}
        yield _typed_event("image_generation.completed", {**completed, **common, "usage": _USAGE})


def _typed_event(kind: str, data: dict[str, object]) -> bytes:
    return event(kind, {"type": kind, "created_at": int(time.time()), **data})


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    documented = answers.refusals(*statuses)
    return {
        status: {"model": OpenAIErrorBody, "description": entry["description"]} for status, entry in documented.items()
    }


def _schema(settings: Settings) -> dict[str, Any]:
    schema = answers.parameter_schema(settings.sizes)
    ours = {name: field for name, field in schema["properties"].items() if name not in (*_THEIR_NAMES, "base64")}
    sizes = [f"{width}x{height}" for width in sorted(settings.sizes) for height in sorted(settings.sizes)]
    theirs = {
        "model": {"type": "string", "enum": list(settings.slugs), "default": settings.slugs[0]},
        "n": {"type": "integer", "minimum": 1, "maximum": MAX_SAMPLES, "default": 1},
        "size": {"type": "string", "enum": ["auto", *sizes], "default": "auto"},
        "response_format": {"type": "string", "enum": ["b64_json", "url"], "default": "b64_json"},
        "output_format": {"type": "string", "enum": [kind.value for kind in ImageFormat], "default": "png"},
        "background": {"type": "string", "enum": ["opaque", "auto"], "default": "auto"},
        "stream": {"type": "boolean", "default": False},
        "partial_images": {"type": "integer", "minimum": 0, "maximum": _MAX_PARTIAL_IMAGES, "default": 0},
    }
    return {**schema, "properties": {**ours, **theirs}}
