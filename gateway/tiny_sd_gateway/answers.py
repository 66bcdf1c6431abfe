"""What the answers have in common: headers, bodies, and how they are documented."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from pydantic import BaseModel, Field

from tiny_sd_client.parameters import Parameters
from tiny_sd_gateway import ledger, money
from tiny_sd_gateway.generations import NewPicture
from tiny_sd_gateway.run import Finished
from tiny_sd_gateway.service import Service

LICENSE_LINK = '</license>; rel="license"'
EXPOSED_HEADERS = (
    "x-remaining-credits",
    "x-request-id",
    "x-generation-time",
    "x-seed-value",
    "x-cost",
    "x-ignored-parameters",
    "retry-after",
    "link",
)
"""Those that pages of other origins may read."""

SAMPLE = {
    "prompt": "cyborg in a battlefield, explosions, highly detailed",
    "negative_prompt": "(worst quality, low quality), blurry, watermark",
    "scheduler": "dpmpp_2m",
    "num_inference_steps": 100,
    "guidance_scale": 7.5,
    "samples": 1,
    "seed": 2313248373,
    "img_width": 512,
    "img_height": 512,
    "base64": False,
}


class ErrorBody(BaseModel):
    """Every refusal."""

    error: str = Field(description="What is wrong, and what is allowed.")
    parameter: str | None = Field(None, description="The parameter to change, if it is one.")
    request_id: str | None = Field(None, description="To be quoted to the operator; only with status 500.")


class Credits(BaseModel):
    """What a key has left."""

    remaining_credits: float


_REFUSALS = {
    400: (
        "The body is malformed.",
        "body: is not JSON; allowed: a JSON object, or a form",
    ),
    401: ("No key, or a wrong one.", "this API key is unknown or revoked"),
    404: ("No such URL, or nothing of yours there.", "no such request, or it is not yours"),
    406: ("Not enough credits.", "not enough credits: 5 needed, 0.25 left"),
    409: (
        "The Idempotency-Key was used for something else, or somebody cancelled the generation.",
        "the Idempotency-Key was used for another request before; use a new one for a new request",
    ),
    410: ("The pictures were removed, as they are after a time.", "the pictures of this request have expired"),
    413: ("The body is too long.", "body: more than 8388608 bytes"),
    422: (
        "A parameter is missing or has a value that is not allowed.",
        "num_inference_steps: got 5; allowed: an integer from 20 to 100",
    ),
    429: ("Too many requests, or the server is full. Retry-After tells when to come back.", "the server is full: …"),
    500: ("A fault of the service.", "internal error"),
    503: ("Not ready, or stopping. Retry-After tells when to come back.", "the gateway is stopping"),
    504: ("The pictures were not finished in time.", "overdue: the pictures were not finished in time"),
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of these refusals; any request may meet 500 and 503."""
    return {
        status: {
            "model": ErrorBody,
            "description": _REFUSALS[status][0],
            "content": {"application/json": {"example": {"error": _REFUSALS[status][1]}}},
        }
        for status in sorted({*statuses, 500, 503})
    }


def header_documentation() -> dict[str, Any]:
    """The headers of an answer with pictures."""
    texts = {
        "x-remaining-credits": "What the key has left.",
        "x-cost": "What this request cost, in credits.",
        "x-request-id": "Id of the generation.",
        "x-generation-time": "Seconds that the server worked on it.",
        "x-seed-value": "Seed of the first picture.",
        "x-ignored-parameters": "Names that were sent but mean nothing here.",
        "link": "The use restrictions of the model's licence.",
    }
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in texts.items()}


def parameter_schema(sizes: Sequence[int]) -> dict[str, Any]:
    """JSON schema of the documented parameters, complete in itself, with the sizes of this gateway."""
    schema = Parameters.model_json_schema()
    definitions = schema.pop("$defs")
    for name, field in schema["properties"].items():
        reference = field.pop("$ref", "")
        if reference:
            field.update({**definitions[reference.rpartition("/")[2]], **field})
            field.pop("title", None)
        if name in ("img_width", "img_height"):
            field["enum"] = sorted(sizes)
    schema.pop("additionalProperties", None)  # others are ignored
    schema.pop("description", None)
    return schema


def body_documentation(schema: dict[str, Any], example: dict[str, Any], *, forms: bool = True) -> dict[str, Any]:
    """The documentation of a request body that this gateway reads by itself."""
    content = {"application/json": {"schema": schema, "example": example}}
    if forms:
        content["multipart/form-data"] = content["application/x-www-form-urlencoded"] = {"schema": schema}
    return {"requestBody": {"required": True, "content": content}}


async def headers(service: Service, finished: Finished) -> dict[str, str]:
    """Headers of an answer with pictures."""
    generation = finished.generation
    left = await ledger.balance(service.database, generation.key_id)
    return {
        "x-remaining-credits": money.shown(left),
        "x-cost": money.shown(generation.price),
        "x-request-id": generation.id,
        "x-generation-time": f"{generation.infer_s or 0:.3f}",
        "x-seed-value": str(finished.pictures[0].seed),
        "link": LICENSE_LINK,
    }


def base64_of(data: bytes) -> str:
    """Bytes as JSON can hold them."""
    return base64.b64encode(data).decode()


def base64_text(picture: NewPicture) -> str:
    """A picture as JSON can hold it."""
    return base64_of(picture.data)


def credits_number(milli: int) -> float:
    """Milli-credits as a JSON number of credits."""
    return milli / money.MILLI


def public_url(service: Service, request: Request, path: str) -> str:
    """The URL by which callers reach ``path``, which begins with a slash."""
    base = service.settings.public_url or str(request.base_url).rstrip("/")
    return f"{base}{path}"
