"""A gateway that needs no Triton: it speaks what the page speaks, draws landscapes, and fails when told to."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from numpy.typing import NDArray
from PIL import Image
from starlette.types import Scope

from tiny_sd_client.parameters import InvalidParameter, Parameters, parse
from tiny_sd_client.pictures import InvalidImage, read_parameters
from tiny_sd_engine.images import encode, image_parameters

PAGE = Path(__file__).parents[2] / "gateway" / "tiny_sd_gateway" / "page"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
KEY = "tsd_" + "k" * 43
PREVIEW_SIZE = 64


def parameter_definitions() -> list[dict[str, Any]]:
    """What there is to set, as GET /v1/parameters tells it."""
    schema = Parameters.model_json_schema()
    described = []
    for name, definition in schema["properties"].items():
        if name == "base64":
            continue
        referred = schema["$defs"][definition.pop("$ref").rpartition("/")[2]] if "$ref" in definition else {}
        described.append({**referred, **definition, "name": name, "required": name in schema["required"]})
    described.append(
        {
            "name": "preview_every",
            "type": "integer",
            "required": False,
            "minimum": 0,
            "maximum": 100,
            "default": 5,
            "description": "Denoising steps from one preview to the next; 0 for none.",
        }
    )
    return described


@dataclass
class Refusal:
    """What a request is answered instead of what it asked for."""

    status: int
    error: str
    headers: dict[str, str] = field(default_factory=dict)
    parameter: str | None = None

    @property
    def body(self) -> dict[str, str]:
        """As JSON."""
        return {"error": self.error, **({"parameter": self.parameter} if self.parameter else {})}


@dataclass
class MadeUpGateway:
    """The gateway's state, for tests to look at and to change while it runs."""

    credits: dict[str, float] = field(default_factory=lambda: {KEY: 1000.0})
    """By key."""
    definitions: list[dict[str, Any]] = field(default_factory=parameter_definitions)
    seconds_per_step: float = 0.0
    hold_at: int | None = None
    """Step after which a generation waits, for :meth:`go_on` or for its caller to leave."""
    break_at: int | None = None
    """Step after which the connection breaks."""
    fail_at: tuple[int, Refusal] | None = None
    """Step after which the stream ends in an error."""
    line_end: str = "\n"
    """Of the stream: any that server-sent events may have."""
    piece: int | None = None
    """Bytes that leave at a time, whatever they are; None: whole events."""
    refusals: list[Refusal] = field(default_factory=list)
    """What the next generations are answered, before any stream begins."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The bodies of generations."""
    ended: list[str] = field(default_factory=list)
    """How streams ended: done, left, broken, or failed."""
    url: str = ""

    def go_on(self) -> None:
        """Let the generation that waits at ``hold_at`` go on, and the next ones not wait."""
        self.hold_at = None

    def wait_for_end(self, seconds: float = 90.0) -> str:
        """How the latest stream ended, once it has."""
        end = time.monotonic() + seconds
        while not self.ended:
            assert time.monotonic() < end, "no stream has ended"
            time.sleep(0.01)
        return self.ended[-1]


@contextmanager
def serving(gateway: MadeUpGateway) -> Iterator[MadeUpGateway]:
    """Serve ``gateway`` on a free port of this machine, from a thread."""
    server = uvicorn.Server(uvicorn.Config(make_app(gateway), port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()
        gateway.url = f"http://{host}:{port}"
        yield gateway
    finally:
        server.should_exit = True
        thread.join()


def make_app(gateway: MadeUpGateway) -> FastAPI:
    """The application around a gateway's state."""
    app = FastAPI()

    @app.get("/v1/parameters")
    def definitions() -> dict[str, Any]:
        return {"parameters": gateway.definitions, "slugs": ["tinysd1.5-txt2img"], "credits_per_picture": "1"}

    @app.post("/v1/parameters")
    async def parameters_inside(file: UploadFile, request: Request) -> Response:
        if refusal := _without_key(gateway, request):
            return refusal
        try:
            return JSONResponse({"parameters": read_parameters(await file.read())})
        except InvalidImage as error:
            return JSONResponse({"error": f"file: {error}"}, 422)

    @app.get("/v1/credits")
    def remaining_credits(request: Request) -> Response:
        if refusal := _without_key(gateway, request):
            return refusal
        return JSONResponse({"remaining_credits": gateway.credits[request.headers["x-api-key"]]})

    @app.post("/v1/generations/stream")
    async def generate(request: Request) -> Response:
        if refusal := _without_key(gateway, request):
            return refusal
        body = json.loads(await request.body())
        gateway.asked.append(dict(body))
        if gateway.refusals:
            refused = gateway.refusals.pop(0)
            return JSONResponse(refused.body, refused.status, refused.headers)
        preview_every = body.pop("preview_every", 0)
        try:
            parameters = parse(body).resolved()
        except InvalidParameter as error:
            return JSONResponse({"error": str(error)}, 422)
        events = _draw(gateway, request, parameters, preview_every)
        return StreamingResponse(_pieces(gateway, events), media_type="text/event-stream")

    @app.post("/v1/tinysd1.5-txt2img")
    async def generate_at_once(request: Request) -> Response:
        if refusal := _without_key(gateway, request):
            return refusal
        parameters = parse(await request.json()).resolved()
        files = _files(parameters)
        if parameters.base64:
            return JSONResponse({"image": [base64.b64encode(file).decode() for file in files], "status": "success"})
        return Response(files[0], media_type=f"image/{parameters.image_format}")

    app.mount("/", _GuardedFiles(directory=PAGE, html=True))
    return app


class _GuardedFiles(StaticFiles):
    """Files under the policy that the gateway sends with its page."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["content-security-policy"] = CONTENT_SECURITY_POLICY
        return response


def picture_file(**parameters: Any) -> bytes:
    """A picture as this gateway would draw it for ``parameters``."""
    return _files(parse(parameters))[0]


def _without_key(gateway: MadeUpGateway, request: Request) -> Response | None:
    if request.headers.get("x-api-key") in gateway.credits:
        return None
    return JSONResponse({"error": "this API key is unknown or revoked"}, 401)


async def _draw(
    gateway: MadeUpGateway, request: Request, parameters: Parameters, preview_every: int
) -> AsyncGenerator[str, None]:
    steps = parameters.num_inference_steps
    end = "left"
    try:
        yield _event("progress", _progress("queued", 0, steps, None))
        while gateway.hold_at == 0 and not await request.is_disconnected():
            await asyncio.sleep(0.01)
        for step in range(1, steps + 1):
            await asyncio.sleep(gateway.seconds_per_step)
            yield _event("progress", _progress("denoising", step, steps, (steps - step) * gateway.seconds_per_step))
            if preview_every and step % preview_every == 0:
                yield _event("preview", {"images": _previews(parameters, step / steps)})
            while gateway.hold_at == step and not await request.is_disconnected():
                await asyncio.sleep(0.01)
            if gateway.break_at == step:
                end = "broken"
                raise ConnectionResetError
            if gateway.fail_at and gateway.fail_at[0] == step:
                end = "failed"
                yield _event("error", {"status": gateway.fail_at[1].status, **gateway.fail_at[1].body})
                return
        yield _event("progress", _progress("decoding", steps, steps, 0.0))
        cost = parameters.samples * steps / 20 * parameters.img_width * parameters.img_height / 512**2
        key = request.headers["x-api-key"]
        gateway.credits[key] = round(gateway.credits[key] - cost, 3)
        yield _event("done", _done(parameters, cost, gateway.credits[key], steps * gateway.seconds_per_step))
        end = "done"
    finally:
        gateway.ended.append(end)


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


async def _pieces(gateway: MadeUpGateway, events: AsyncGenerator[str, None]) -> AsyncIterator[bytes]:
    async with aclosing(events):
        async for event in events:
            data = event.replace("\n", gateway.line_end).encode()
            size = gateway.piece or len(data)
            for begin in range(0, len(data), size):
                yield data[begin : begin + size]


def _progress(stage: str, step: int, steps: int, seconds_left: float | None) -> dict[str, Any]:
    return {
        "job_id": "drawing",
        "stage": stage,
        "step": step,
        "steps": steps,
        "seconds": 0.0,
        "seconds_left": seconds_left,
    }


def _done(parameters: Parameters, cost: float, remaining: float, seconds: float) -> dict[str, Any]:
    images = [
        {
            "b64": base64.b64encode(file).decode(),
            "seed": parameters.seed + index,
            "media_type": f"image/{parameters.image_format}",
        }
        for index, file in enumerate(_files(parameters))
    ]
    return {
        "images": images,
        "parameters": parameters.picture(),
        "cost": cost,
        "remaining_credits": remaining,
        "infer_time": seconds,
    }


def _files(parameters: Parameters) -> list[bytes]:
    width, height = parameters.img_width, parameters.img_height
    return [
        encode(
            landscape(parameters.seed + index, width, height),
            parameters.image_format,
            image_parameters(parameters.picture(), index),
        )
        for index in range(parameters.samples)
    ]


def _previews(parameters: Parameters, part: float) -> list[str]:
    """Small JPEG files of pictures of which ``part`` has come out of the noise."""
    texts = []
    for index in range(parameters.samples):
        seed = parameters.seed + index
        drawn = landscape(seed, PREVIEW_SIZE, PREVIEW_SIZE)
        noise = np.random.default_rng(seed).normal(128, 70, drawn.shape)
        mixed = np.clip(part * drawn + (1 - part) * noise, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(mixed).save(file, "JPEG")
        texts.append(base64.b64encode(file.getvalue()).decode())
    return texts


def landscape(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    """Hills under a sun, in colours that depend on the seed: [height, width, 3]."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, width / height, width), np.linspace(0, 1, height))
    hue = random.uniform(0, 2 * np.pi)

    def colour(light: float, turn: float, strength: float = 70.0) -> NDArray[np.float64]:
        return light + strength * np.cos(hue + turn + np.array([0.0, 2.1, 4.2]))

    sky = y[..., None] * colour(215, 1.2, 38) + (1 - y[..., None]) * colour(120, 0.2, 60)
    sun_x, sun_y = random.uniform(0.2, 0.8) * width / height, random.uniform(0.2, 0.42)
    distance = np.hypot(x - sun_x, y - sun_y)[..., None]
    picture = sky + 60 * np.exp(-6 * distance)
    picture = np.where(distance < 0.085, colour(238, 1.0, 15), picture)
    for layer in range(5):
        waves = random.uniform([1.5, 3, 7], [3, 7, 15])
        phases = random.uniform(0, 2 * np.pi, 3)
        swings = np.array([0.07, 0.03, 0.008])[:, None, None]
        edge = 0.5 + 0.11 * layer + (swings * np.sin(waves[:, None, None] * x + phases[:, None, None])).sum(0)
        picture = np.where((y > edge)[..., None], colour(165 - 32 * layer, 0.9 - 0.15 * layer, 45), picture)
    grain = random.normal(0, 2.0, (height, width, 1))
    return np.clip(picture + grain, 0, 255).astype(np.uint8)
