"""The documented parameters go in, the right pictures come out, whichever way the server is called."""

from __future__ import annotations

import io

import numpy as np
import pytest
from callers import change_of, generated, grpc, http_generate, http_infer
from PIL import Image

from local_server import LocalServer
from reference import Reference, largest_difference
from tiny_sd_client.parameters import Parameters, parse
from tiny_sd_client.pictures import read_parameters

LONG_NEGATIVE = (
    "(deformed iris, deformed pupils, semi-realistic, cgi, 3d, render, sketch, cartoon, drawing, anime, mutated hands "
    "and fingers:1.4), (deformed, distorted, disfigured:1.3), poorly drawn, bad anatomy, wrong anatomy, extra limb, "
    "missing limb, floating limbs, disconnected limbs, mutation, mutated, ugly, disgusting, amputation"
)


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def test_every_protocol_gives_the_same_picture(server: LocalServer) -> None:
    asked = {"prompt": "a red circle", "seed": 98877465625, "scheduler": "euler_a", "guidance_scale": 4.2, "samples": 2}
    by_grpc = grpc(server.grpc_url, **asked)
    assert by_grpc == http_infer(server.http_url, **asked) == generated(http_generate(server.http_url, **asked))
    assert by_grpc == grpc(server.grpc_url, **asked, base64=True)
    assert by_grpc == grpc(server.grpc_url, **asked, base64=False)
    assert by_grpc == http_infer(server.http_url, **asked, base64=False)
    assert by_grpc.images[0] != by_grpc.images[1]
    assert by_grpc.seeds == [98877465625, 98877465626]


def test_a_prompt_alone_takes_the_documented_defaults_and_returns_the_seed_it_drew(server: LocalServer) -> None:
    first = generated(http_generate(server.http_url, prompt="a red circle"))
    assert first.parameters == {
        "prompt": "a red circle",
        "negative_prompt": "",
        "scheduler": "UniPC",
        "num_inference_steps": 20,
        "guidance_scale": 7.5,
        "samples": 1,
        "seed": first.seeds[0],
        "img_width": 512,
        "img_height": 512,
        "image_format": "jpeg",
    }
    assert Image.open(io.BytesIO(first.images[0])).size == (512, 512)
    assert Image.open(io.BytesIO(first.images[0])).format == "JPEG"
    assert grpc(server.grpc_url, prompt="a red circle", seed=first.seeds[0]).images == first.images
    assert grpc(server.grpc_url, prompt="a red circle").images != first.images


@pytest.mark.parametrize(
    ("scheduler", "guidance_scale", "samples", "steps", "size"),
    [
        ("UniPC", 7.5, 1, 20, (512, 512)),
        ("DDIM", 1.0, 3, 20, (512, 512)),
        ("Euler a", 7.5, 3, 20, (512, 768)),
        ("DPM2 a Karras", 7.5, 1, 37, (512, 512)),
        ("PNDM", 1.0, 1, 37, (768, 512)),
        ("DDPM", 7.3, 1, 20, (768, 512)),
        ("dpmpp_2m", 7.5, 1, 37, (512, 512)),
        ("LMS", 12.0, 1, 20, (512, 512)),
    ],
)
def test_pictures_are_those_of_diffusers(
    scheduler: str,
    guidance_scale: float,
    samples: int,
    steps: int,
    size: tuple[int, int],
    server: LocalServer,
    reference: Reference,
) -> None:
    parameters: Parameters = parse(
        {
            "prompt": "a small red circle on blue",
            "negative_prompt": "blurry",
            "scheduler": scheduler,
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "samples": samples,
            "seed": 7,
            "img_width": size[0],
            "img_height": size[1],
            "image_format": "png",
        }
    )
    answer = grpc(server.grpc_url, **parameters.picture())
    expected = reference.pixels(parameters)
    assert len(answer.images) == samples
    for file, theirs in zip(answer.images, expected, strict=True):
        assert largest_difference(pixels(file), theirs) <= 1


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_a_picture_can_be_made_again_from_its_own_file(image_format: str, server: LocalServer) -> None:
    answer = grpc(
        server.grpc_url,
        prompt="ein (roter:1.2) Kreis, 赤い円",
        negative_prompt=LONG_NEGATIVE,
        samples=2,
        seed=5,
        image_format=image_format,
    )
    for index, file in enumerate(answer.images):
        embedded = read_parameters(file)
        assert embedded == {**answer.parameters, "samples": 1, "seed": 5 + index}
        assert grpc(server.grpc_url, **embedded).images == [file]


def test_a_long_negative_prompt_is_not_cut(server: LocalServer) -> None:
    asked = {"prompt": "a red circle", "seed": 3}
    words = LONG_NEGATIVE.replace("ugly", "blurry")
    assert words.index("blurry") > LONG_NEGATIVE.index("missing limb"), "the change must lie beyond the first window"
    whole = grpc(server.grpc_url, **asked, negative_prompt=LONG_NEGATIVE)
    assert whole.images != grpc(server.grpc_url, **asked, negative_prompt=words).images


def test_emphasis_changes_the_picture_and_escaped_brackets_do_not_count(server: LocalServer) -> None:
    def picture(prompt: str) -> list[bytes]:
        return [pixels(file).tobytes() for file in grpc(server.grpc_url, prompt=prompt, seed=3).images]

    assert picture("a (red:1.0) circle") == picture("a red circle")
    assert picture("a (red:1.3) circle") != picture("a red circle")
    assert picture(r"a \(red\) circle") != picture("a (red) circle")


def test_repeated_prompts_are_encoded_once(server: LocalServer) -> None:
    grpc(server.grpc_url, prompt="encoded once", negative_prompt="encoded as well")
    with change_of(server.metrics_url) as change:
        grpc(server.grpc_url, prompt="encoded once", negative_prompt="never seen before")
    assert change["tiny_sd_texts_total:text_encoder"] == 2
    assert change["tiny_sd_texts_encoded_total:text_encoder"] == 1
