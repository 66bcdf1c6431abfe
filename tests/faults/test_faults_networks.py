"""Networks that run out of memory or compute nonsense: whoever made them do so hears of it, and nobody else."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from faulty_repository import LARGE_SEED, NAN_SEED, WIDE, write_faulty_repository
from matrix import Matrix, Row
from PIL import Image
from serving_server import FP32, SMALL_SIZES

from local_server import LocalServer
from tiny_sd_client import Client, ServerFault, TinySDError

NEIGHBOURS = [{"prompt": f"neighbour {number}", "seed": number} for number in range(3)]
LONG_PROMPT = " ".join(["a picture of many words"] * 60)


@pytest.fixture(scope="module")
def faulty_server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("faulty")
    environment = {"TINY_SD_CHECKPOINT": str(checkpoint), "TINY_SD_MAX_ROWS": "16", **FP32, **SMALL_SIZES}
    repository = write_faulty_repository(folder / "model_repository")
    with LocalServer(repository=repository, env=environment, log_path=folder / "log") as server:
        yield server
    log = (folder / "log").read_text()
    assert "Model 'tiny_sd' (version 1) has" not in log, "the stop waited for a generation that had failed"


@pytest.fixture(scope="module")
def undisturbed(faulty_server: LocalServer) -> list[np.ndarray]:
    """The neighbours' pictures, each made alone."""
    return [together(faulty_server, [neighbour])[0] for neighbour in NEIGHBOURS]


def together(server: LocalServer, requests: Sequence[dict[str, object]]) -> list[np.ndarray | TinySDError]:
    """Make all at once. Each one's pixels, or what it got instead."""

    def call(request: dict[str, object]) -> np.ndarray | TinySDError:
        size = {"img_width": 128, "img_height": 128, "image_format": "png", "num_inference_steps": 40}
        try:
            with Client(f"grpc://{server.grpc_url}", patience=0) as client:
                file = client.generate(**{**size, **request}).files[0]
        except TinySDError as error:
            return error
        return np.asarray(Image.open(io.BytesIO(file)), dtype=np.int16)

    with ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(call, requests))


@pytest.mark.parametrize(
    ("fault", "guilty", "message"),
    [
        ("NaN in a generation's latents", {"seed": NAN_SEED}, "the denoiser failed: the latents are not finite"),
        ("unet out of memory", {"seed": LARGE_SEED}, "the denoiser failed: OutOfMemoryError"),
        ("vae_decoder out of memory", WIDE, "the VAE decoder failed"),
        ("text_encoder out of memory", {"prompt": LONG_PROMPT}, "the text encoder failed"),
    ],
)
def test_only_whoever_is_at_fault_fails(
    fault: str,
    guilty: dict[str, object],
    message: str,
    faulty_server: LocalServer,
    undisturbed: list[np.ndarray],
    matrix: Matrix,
) -> None:
    failed, *spared = together(faulty_server, [{"prompt": "guilty", **guilty}, *NEIGHBOURS])
    assert type(failed) is ServerFault
    assert message in str(failed)
    assert "CUDA" not in str(failed), "what libraries say is for the log"
    for picture, expected in zip(spared, undisturbed, strict=True):
        assert isinstance(picture, np.ndarray), picture
        # Calls of several rows round differently.
        assert np.abs(picture - expected).max() <= 3
    with Client(f"grpc://{faulty_server.grpc_url}") as client:
        assert client.jobs() == [], "a place is free before its caller hears"
    matrix.add(Row(fault, "1 ServerFault (whoever was at fault), 3 picture"))


def test_calls_that_are_too_large_are_made_in_parts(faulty_server: LocalServer, undisturbed: list[np.ndarray]) -> None:
    # Three guided pictures are six rows, and their prompts six windows: more than either network takes here.
    for picture, expected in zip(together(faulty_server, NEIGHBOURS), undisturbed, strict=True):
        assert isinstance(picture, np.ndarray), picture
        assert np.abs(picture - expected).max() <= 3
