"""The queue: submit, look, fetch, cancel; as the package ``segmind`` does. What was accepted survives restarts."""

from __future__ import annotations

import re
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from tiny_sd_gateway import answers, generations, leases, ledger, submission
from tiny_sd_gateway.auth import Caller, PayingCaller
from tiny_sd_gateway.body import documented, idempotency_key, ignored_header, read_values
from tiny_sd_gateway.errors import CANCELLED, Refusal
from tiny_sd_gateway.faults import UnknownGeneration
from tiny_sd_gateway.generations import Api, Generation, Picture, State
from tiny_sd_gateway.keys import Key
from tiny_sd_gateway.runner import stopping
from tiny_sd_gateway.service import Service, service_of
from tiny_sd_gateway.settings import Settings

_EXTENSIONS = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}

StateName = Literal["QUEUED", "PROCESSING", "COMPLETED", "FAILED"]
# The package segmind would wait on and on for any other state.
_STATE_NAMES: dict[State, StateName] = {
    State.QUEUED: "QUEUED",
    State.PROCESSING: "PROCESSING",
    State.COMPLETED: "COMPLETED",
    State.FAILED: "FAILED",
    State.CANCELLED: "FAILED",
}
_REQUEST_ID = re.compile(r"[0-9a-f]{32}")
_PICTURE_ID = re.compile(r"[A-Za-z0-9_-]{32}")


class Submitted(BaseModel):
    """An accepted request."""

    request_id: str
    status: StateName
    status_url: str
    response_url: str
    cancel_url: str
    poll_url: str = Field(description="The same as response_url; for older clients.")


class Metrics(BaseModel):
    """Times in seconds, and credits; each as soon as it is known."""

    inference_time: float | None = None
    queue_time: float | None = None
    total_time: float | None = None
    cost: float | None = Field(default=None, description="Credits that were charged.")
    remaining_credits: float | None = None


class Status(BaseModel):
    """How far a request is."""

    request_id: str
    status: StateName
    status_url: str
    response_url: str
    error: str | None = Field(None, description="Why it failed; cancelled ones count as failed.")
    metrics: Metrics


class Image(BaseModel):
    """A finished picture."""

    url: str = Field(description="Needs no key: whoever has it can see the picture.")
    content_type: str
    file_name: str
    file_size: int
    seed: int


class Result(Status):
    """A finished request."""

    output: str | list[str] | None = Field(None, description="URL of the picture; a list where samples is above 1.")
    images: list[Image] | None = None
    seed: int | None = None
    prompt: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="Everything resolved; makes the same files again.")


def router(settings: Settings) -> APIRouter:
    """A route for each slug to submit to, and those for what was submitted."""
    router = APIRouter(tags=["v2: the queue"])
    for slug in settings.slugs:
        router.add_api_route(
            f"/v2/{slug}",
            _submit(slug),
            methods=["POST"],
            operation_id=f"v2_{slug}",
            summary="Queue a request for pictures",
            response_model=Submitted,
            responses=answers.refusals(400, 401, 406, 409, 413, 422, 429),
            openapi_extra=answers.body_documentation(answers.parameter_schema(settings.sizes), answers.SAMPLE),
        )
    failed: dict[int | str, dict[str, Any]] = {
        422: {"model": Status, "description": "It failed, or was cancelled; nothing was charged."}
    }
    router.add_api_route(
        "/v2/requests/{request_id}/status",
        status,
        methods=["GET"],
        response_model=Status,
        responses={**answers.refusals(401, 404), **failed},
    )
    router.add_api_route(
        "/v2/requests/{request_id}",
        result,
        methods=["GET"],
        response_model=Result,
        responses={
            202: {"model": Status, "description": "Not finished yet."},
            **answers.refusals(401, 404, 410),
            **failed,
        },
    )
    for path, method in (("/v2/requests/{request_id}/cancel", "POST"), ("/v2/requests/{request_id}", "DELETE")):
        router.add_api_route(
            path,
            cancel,
            methods=[method],
            operation_id=f"cancel_{method.lower()}",
            response_model=Status,
            responses=answers.refusals(401, 404),
        )
    router.add_api_route(
        "/v2/pictures/{picture_id}",
        picture,
        methods=["GET"],
        response_class=Response,
        responses={
            200: {"content": {kind: {} for kind in _EXTENSIONS}, "description": "The picture."},
            **answers.refusals(404),
        },
    )
    return router


def _submit(slug: str) -> Any:
    async def submit(request: Request, response: Response, key: PayingCaller) -> Submitted:
        """Answers at once; a wrong value is refused here already. `base64` has no effect: pictures come as URLs.

        With an `Idempotency-Key` the same request gets the same id again and is charged once.
        """
        service = service_of(request)
        sent = await read_values(request)
        values = documented(sent)
        order = submission.order(service, key, Api.V2, slug, values, idempotency_key=idempotency_key(request))
        if service.stopping:
            raise stopping()
        generation = await generations.submit(service.database, order)
        service.workers.wake()
        response.headers.update(ignored_header(name for name in sent if name not in values))
        response.headers["x-request-id"] = generation.id
        urls = _urls(service, request, generation)
        cancel_url = f"{urls['response_url']}/cancel"
        state = _state(generation)
        return Submitted(**urls, status=state, cancel_url=cancel_url, poll_url=urls["response_url"])

    return submit


async def status(request: Request, request_id: str, key: Caller) -> Response:
    """How far a request is."""
    service = service_of(request)
    generation = await _found(service, key, request_id)
    return await _status(service, request, generation)


async def result(request: Request, request_id: str, key: Caller) -> Response:
    """The pictures of a finished request."""
    service = service_of(request)
    generation = await _found(service, key, request_id)
    if generation.state is not State.COMPLETED:
        return await _status(service, request, generation, unfinished=202)
    pictures = await generations.pictures_of(service.database, key.id, request_id)
    if not pictures:
        raise Refusal(410, "the pictures of this request have expired, or were not kept")
    images = [_image(service, request, picture) for picture in pictures]
    body = Result(
        **await _known(service, request, generation),
        output=images[0].url if len(images) == 1 else [image.url for image in images],
        images=images,
        seed=pictures[0].seed,
        prompt=generation.parameters.prompt,
        parameters=generation.parameters.picture(),
    )
    headers = {"link": answers.LICENSE_LINK, "x-request-id": generation.id}
    return JSONResponse(body.model_dump(mode="json", exclude_none=True), headers=headers)


async def cancel(request: Request, request_id: str, key: Caller) -> Response:
    """Cancel a request and refund it. One that has ended stays as it is."""
    service = service_of(request)
    generation = await _found(service, key, request_id)
    generation = await leases.cancel(service.database, key.id, generation.id, service.settings.results_ttl_s)
    service.runner.cancel_local(generation.id)
    return await _status(service, request, generation, failed=200)


async def picture(request: Request, picture_id: str) -> Response:
    """A picture by its unguessable id, without a key."""
    found = None
    if _PICTURE_ID.fullmatch(picture_id):  # a database may choke on other text
        found = await generations.picture(service_of(request).database, picture_id)
    if not found:
        raise Refusal(404, "no such picture, or it has expired")
    name = f"{found.seed}.{_EXTENSIONS[found.media_type]}"
    headers = {
        "cache-control": "private, max-age=3600, immutable",
        "content-disposition": f'inline; filename="{name}"',
        "link": answers.LICENSE_LINK,
        "x-seed-value": str(found.seed),
    }
    return Response(found.data, 200, headers, found.media_type)


async def _found(service: Service, key: Key, request_id: str) -> Generation:
    if not _REQUEST_ID.fullmatch(request_id):
        raise UnknownGeneration(request_id)
    return await generations.find(service.database, key.id, request_id)


async def _status(
    service: Service, request: Request, generation: Generation, *, unfinished: int = 200, failed: int = 422
) -> Response:
    body = Status(**await _known(service, request, generation))
    code = 200
    if not generation.state.ended:
        code = unfinished
    elif generation.state is not State.COMPLETED:
        code = failed
    headers = {"x-request-id": generation.id}
    return JSONResponse(body.model_dump(mode="json", exclude_none=True), code, headers)


async def _known(service: Service, request: Request, generation: Generation) -> dict[str, Any]:
    metrics = Metrics(inference_time=generation.infer_s)
    if generation.started_at:
        metrics.queue_time = (generation.started_at - generation.created_at).total_seconds()
    if generation.finished_at:
        metrics.total_time = (generation.finished_at - generation.created_at).total_seconds()
    if generation.state is State.COMPLETED:
        metrics.cost = answers.credits_number(generation.price)
        metrics.remaining_credits = answers.credits_number(await ledger.balance(service.database, generation.key_id))
    error = CANCELLED if generation.state is State.CANCELLED else generation.error
    return {**_urls(service, request, generation), "status": _state(generation), "error": error, "metrics": metrics}


def _state(generation: Generation) -> StateName:
    return _STATE_NAMES[generation.state]


def _urls(service: Service, request: Request, generation: Generation) -> dict[str, str]:
    url = answers.public_url(service, request, f"/v2/requests/{generation.id}")
    return {"request_id": generation.id, "status_url": f"{url}/status", "response_url": url}


def _image(service: Service, request: Request, picture: Picture) -> Image:
    return Image(
        url=answers.public_url(service, request, f"/v2/pictures/{picture.id}"),
        content_type=picture.media_type,
        file_name=f"{picture.seed}.{_EXTENSIONS[picture.media_type]}",
        file_size=len(picture.data),
        seed=picture.seed,
    )
