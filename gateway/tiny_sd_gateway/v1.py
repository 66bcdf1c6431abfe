"""The documented API: one request, one answer with the pictures."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from tiny_sd_gateway import answers, submission
from tiny_sd_gateway.auth import PayingCaller
from tiny_sd_gateway.body import documented, idempotency_key, ignored_header, read_values
from tiny_sd_gateway.generations import Api
from tiny_sd_gateway.run import Finished
from tiny_sd_gateway.service import service_of
from tiny_sd_gateway.settings import Settings


class PicturesBody(BaseModel):
    """Pictures as base64 text."""

    image: str | list[str] = Field(description="An image file in base64; a list of them where samples is above 1.")
    status: str = "success"
    infer_time: float = Field(description="Seconds that the server worked on it.")
    seed: int = Field(description="Seed of the first picture.")
    seeds: list[int] = Field(description="Seed of each picture.")
    parameters: dict[str, Any] = Field(description="Everything resolved; makes the same files again.")


def router(settings: Settings) -> APIRouter:
    """A route for each slug."""
    router = APIRouter(tags=["v1: the documented API"])
    pictures = {
        "model": PicturesBody,
        "description": "The picture itself if base64 is false and samples is 1; else JSON.",
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("image/jpeg", "image/png", "image/webp")
        },
        "headers": answers.header_documentation(),
    }
    for slug in settings.slugs:
        router.add_api_route(
            f"/v1/{slug}",
            _endpoint(slug),
            methods=["POST"],
            operation_id=f"v1_{slug}",
            summary="Make pictures and wait for them",
            response_class=Response,
            responses={200: pictures, **answers.refusals(400, 401, 406, 409, 413, 422, 429, 504)},
            openapi_extra=answers.body_documentation(answers.parameter_schema(settings.sizes), answers.SAMPLE),
        )
    return router


def _endpoint(slug: str) -> Any:
    async def generate(request: Request, key: PayingCaller) -> Response:
        """Numbers may come as text, and names that mean nothing here are ignored and listed in `x-ignored-parameters`.

        With an `Idempotency-Key` the same request gets the same answer again and is charged once. Leaving before the
        answer cancels the generation; only answers with status 200 are charged.
        """
        service = service_of(request)
        sent = await read_values(request)
        values = documented(sent)
        order = submission.order(service, key, Api.V1, slug, values, idempotency_key=idempotency_key(request))
        finished = await submission.finished(service, request, order)
        headers = await answers.headers(service, finished)
        headers.update(ignored_header(name for name in sent if name not in values))
        return _response(finished, order.parameters.base64, headers)

    return generate


def _response(finished: Finished, base64: bool, headers: dict[str, str]) -> Response:
    first, *others = finished.pictures
    if not base64 and not others:
        return Response(first.data, 200, headers, first.media_type)
    images = [answers.base64_text(picture) for picture in finished.pictures]
    body = {
        "image": images if others else images[0],
        "status": "success",
        "infer_time": round(finished.generation.infer_s or 0, 3),
        "seed": first.seed,
        "seeds": [picture.seed for picture in finished.pictures],
        "parameters": finished.generation.parameters.picture(),
    }
    return Response(json.dumps(body), 200, headers, "application/json")
