"""Images that are written with the parameters they were made with. Reading those back: test_pictures.py."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import IFD, Base

from tiny_sd_client import pictures
from tiny_sd_client.pictures import read_parameters
from tiny_sd_engine.errors import InvalidInput
from tiny_sd_engine.images import MAX_PARAMETERS, encode

FORMATS = ["jpeg", "png", "webp"]
PARAMETERS: dict[str, object] = {
    "prompt": 'a "red" cat \\ 日本語 кот 🎉\nsecond line',
    "negative_prompt": "",
    "guidance_scale": 7.5,
    "seed": 2**62 + 1,
    "base64": False,
}


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """A colourful 64 x 48 image without hard edges."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([x * 4, y * 5, 255 - x - y], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("image_format", FORMATS)
def test_parameters_come_back_from_every_format(pixels: NDArray[np.uint8], image_format: str) -> None:
    data = encode(pixels, image_format, PARAMETERS)
    assert read_parameters(data) == PARAMETERS
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == image_format.upper()
        assert image.size == (64, 48)


@settings(max_examples=50)
@given(st.sampled_from(FORMATS), st.dictionaries(st.text(), st.text() | st.integers() | st.booleans() | st.none()))
def test_any_parameters_come_back(image_format: str, parameters: dict[str, object]) -> None:
    assert read_parameters(encode(np.zeros((8, 8, 3), np.uint8), image_format, parameters)) == parameters


@pytest.mark.parametrize(("image_format", "tolerance"), [("png", 0), ("jpeg", 6), ("webp", 20)])
def test_pixels_survive_within_the_loss_of_the_format(
    pixels: NDArray[np.uint8], image_format: str, tolerance: int
) -> None:
    with Image.open(io.BytesIO(encode(pixels, image_format, {}))) as image:
        decoded = np.asarray(image.convert("RGB"), np.int16)
    assert np.abs(decoded - pixels).max() <= tolerance


@pytest.mark.parametrize("image_format", FORMATS)
def test_equal_arguments_give_equal_bytes(pixels: NDArray[np.uint8], image_format: str) -> None:
    reordered = dict(reversed(PARAMETERS.items()))
    assert encode(pixels, image_format, PARAMETERS) == encode(pixels.copy(), image_format, reordered)


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_exif_holds_a_unicode_user_comment_in_the_exif_directory(pixels: NDArray[np.uint8], image_format: str) -> None:
    data = encode(pixels, image_format, PARAMETERS)
    text = json.dumps(PARAMETERS, ensure_ascii=False, sort_keys=True)
    assert b"UNICODE\0" + text.encode("utf-16-be") in data
    with Image.open(io.BytesIO(data)) as image:
        exif = image.getexif()
    assert exif[Base.Software] == "Tiny-SD on Triton"
    assert Base.UserComment not in exif
    assert exif.get_ifd(IFD.Exif)[Base.UserComment].startswith(b"UNICODE\0")


def test_png_holds_readable_text_chunks(pixels: NDArray[np.uint8]) -> None:
    with Image.open(io.BytesIO(encode(pixels, "png", PARAMETERS))) as image:
        assert isinstance(image.info["parameters"], str)
        assert json.loads(image.info["parameters"]) == PARAMETERS
        assert image.info["Software"] == "Tiny-SD on Triton"


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("character", ["🎉", '"', "\\", "\n", "é"])
def test_two_prompts_of_4000_characters_fit(pixels: NDArray[np.uint8], image_format: str, character: str) -> None:
    parameters = {"prompt": character * 4000, "negative_prompt": character * 4000, "other": "x" * 200}
    assert read_parameters(encode(pixels, image_format, parameters)) == parameters


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_most_parameters_fit_and_one_more_character_is_refused(
    pixels: NDArray[np.uint8], image_format: str
) -> None:
    assert MAX_PARAMETERS == pictures.MAX_PARAMETERS, "what may be written must be readable"
    most = MAX_PARAMETERS // 2 - len('{"prompt": ""}')
    assert read_parameters(encode(pixels, image_format, {"prompt": "x" * most})) == {"prompt": "x" * most}
    with pytest.raises(InvalidInput, match=r"^parameters: are 65002 bytes long in UTF-16; at most 65000$"):
        encode(pixels, image_format, {"prompt": "x" * (most + 1)})


def test_another_format_is_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(InvalidInput, match=r"^image_format: is 'gif'; must be one of jpeg, png, webp$"):
        encode(pixels, "gif", {})
