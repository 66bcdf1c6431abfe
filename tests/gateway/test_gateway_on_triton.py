"""The gateway on a real Triton."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import segmind
from PIL import Image
from running_gateway import SLUG, RunningGateway, wait_until

from local_server import LocalServer
from tiny_sd_client import AsyncClient, Client
from tiny_sd_client.pictures import read_parameters

V1, V2 = f"/v1/{SLUG}", f"/v2/{SLUG}"
DOCUMENTED_SAMPLE = {
    "prompt": "cyborg in a battlefield, explosions, highly detailed",
    "negative_prompt": (
        "ugly, tiling, poorly drawn hands, poorly drawn feet, poorly drawn face, out of frame, extra limbs, "
        "disfigured, deformed, body out of frame, blurry, bad anatomy, blurred, watermark, grainy, signature, "
        "cut off, draft, (worst quality, low quality:1.4), lowres, jpeg artifacts, username, error, extra fingers"
    ),
    "scheduler": "dpmpp_2m",
    "num_inference_steps": 100,
    "guidance_scale": 7.5,
    "samples": 1,
    "seed": 2313248373,
    "img_width": 512,
    "img_height": 512,
    "base64": False,
}
LONG = {
    "prompt": "a circle that takes long",
    "scheduler": "Heun",
    "num_inference_steps": 100,
    "samples": 4,
    "img_width": 1024,
    "img_height": 1024,
}


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with serve(checkpoint, tmp_path_factory.mktemp("server") / "log") as server:
        yield server


@pytest.fixture
def gateway(server: LocalServer, tmp_path: Path) -> Iterator[RunningGateway]:
    with in_front_of(server, tmp_path / "gateway.db") as gateway:
        yield gateway


def test_the_documented_sample(gateway: RunningGateway, server: LocalServer) -> None:
    answer = gateway.post(V1, json=DOCUMENTED_SAMPLE)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg"), answer.text[:500]
    assert (answer.headers["x-remaining-credits"], answer.headers["x-cost"]) == ("95", "5")
    assert answer.headers["x-seed-value"] == "2313248373"
    assert Image.open(io.BytesIO(answer.content)).size == (512, 512)
    wanted = {name: value for name, value in DOCUMENTED_SAMPLE.items() if name != "base64"}
    assert read_parameters(answer.content) == {**wanted, "image_format": "jpeg"}
    with Client(f"grpc://{server.grpc_url}") as direct:
        assert direct.generate(**wanted).files == (answer.content,)


def test_the_package_segmind(gateway: RunningGateway) -> None:
    client = segmind.SegmindClient(api_key=gateway.key, base_url=f"{gateway.url}/v1", timeout=120)
    wanted = {"prompt": "a small red circle", "seed": 7}
    at_once = client.run_sync(SLUG, **wanted, base64=False).content
    queued = client.run(SLUG, **wanted)
    assert (queued["status"], requests.get(queued["output"], timeout=60).content) == ("COMPLETED", at_once)


def test_the_queue_runs_several_and_charges_each_once(gateway: RunningGateway) -> None:
    jobs = [gateway.post(V2, json={"prompt": f"circle {number}", "seed": number}).json() for number in range(6)]
    for job in jobs:
        wait_until(lambda job=job: gateway.get(job["status_url"]).json()["status"] == "COMPLETED", 120)
    assert gateway.balance() == 94_000


@pytest.mark.parametrize("path", [V1, "/v1/generations/stream", "/v1/images/generations"])
def test_a_caller_who_leaves_stops_triton_and_is_not_charged(
    gateway: RunningGateway, server: LocalServer, path: str
) -> None:
    connection = gateway.send_and_keep(path, {**LONG, "stream": path.endswith("/images/generations")})
    wait_until(lambda: len(in_flight(server)) == 1)
    connection.close()
    wait_until(lambda: not in_flight(server))
    wait_until(lambda: gateway.balance() == 100_000)


def test_a_queued_request_that_is_cancelled_stops_triton(gateway: RunningGateway, server: LocalServer) -> None:
    job = gateway.post(V2, json=LONG).json()
    wait_until(lambda: in_flight(server) == [f"{job['request_id']}-1"])
    gateway.post(job["cancel_url"])
    wait_until(lambda: not in_flight(server))
    assert gateway.balance() == 100_000


def test_a_prompt_that_only_triton_can_refuse_is_refused_by_name(gateway: RunningGateway) -> None:
    answer = gateway.post(V1, json={"prompt": "a " * 1999})
    assert (answer.status_code, answer.json()["parameter"]) == (422, "prompt"), answer.text
    assert gateway.balance() == 100_000


def test_a_timeout_is_told_as_one(server: LocalServer, tmp_path: Path) -> None:
    with in_front_of(server, tmp_path / "gateway.db", timeout_s=0.5) as gateway:
        assert gateway.post(V1, json=LONG).status_code == 504
        assert gateway.balance() == 100_000
        wait_until(lambda: not in_flight(server))


def test_a_triton_whose_model_died_is_not_ready(server: LocalServer, tmp_path: Path) -> None:
    """The last test of the file: it leaves the server with a dead model."""
    with in_front_of(server, tmp_path / "gateway.db") as gateway:
        wait_until(lambda: gateway.get("/readyz").status_code == 200)
        kill_stub(server, "unet")
        assert gateway.post(V1, json={"prompt": "a circle"}).status_code == 500
        assert gateway.balance() == 100_000
        assert gateway.get("/readyz").status_code == 503
    with in_front_of(server, tmp_path / "other.db") as stranger:  # who has not seen it happen
        assert stranger.get("/readyz").status_code == 503


def serve(checkpoint: Path, log: Path) -> LocalServer:
    return LocalServer(env={"TINY_SD_CHECKPOINT": str(checkpoint), "TINY_SD_PRECISION": "fp32"}, log_path=log)


@contextmanager
def in_front_of(server: LocalServer, file: Path, **settings: Any) -> Iterator[RunningGateway]:
    client = AsyncClient(f"grpc://{server.grpc_url}", patience=0)
    with RunningGateway(f"sqlite:///{file}", client, **settings) as gateway:
        yield gateway


def in_flight(server: LocalServer) -> list[str]:
    with Client(f"grpc://{server.grpc_url}") as client:
        return [job.job_id for job in client.jobs()]


def kill_stub(server: LocalServer, model: str) -> None:
    stubs = [process for process in server.process_tree() if f"/{model}/" in " ".join(process.cmdline())]
    assert stubs, [process.cmdline() for process in server.process_tree()]
    for stub in stubs:
        stub.kill()
