"""Images that carry the parameters they were made with."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from tiny_sd_engine.errors import InvalidInput
from tiny_sd_engine.images import MAX_PARAMETERS, encode, read_parameters

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


def png_with(info: PngInfo) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png", pnginfo=info)
    return file.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


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
    most = MAX_PARAMETERS // 2 - len('{"prompt": ""}')
    assert read_parameters(encode(pixels, image_format, {"prompt": "x" * most})) == {"prompt": "x" * most}
    with pytest.raises(InvalidInput, match=r"^parameters: are 65002 bytes long in UTF-16; at most 65000$"):
        encode(pixels, image_format, {"prompt": "x" * (most + 1)})


def test_another_format_is_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(InvalidInput, match=r"^image_format: is 'gif'; must be one of jpeg, png, webp$"):
        encode(pixels, "gif", {})


@pytest.mark.parametrize(
    "data", [b"", b"not an image", b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(99)]
)
def test_data_that_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"^image: is not a readable JPEG, PNG or WebP file$"):
        read_parameters(data)


@pytest.mark.parametrize("image_format", FORMATS)
def test_an_image_of_someone_else_holds_no_parameters(image_format: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, image_format)
    with pytest.raises(InvalidInput, match=r"^image: holds no generation parameters$"):
        read_parameters(file.getvalue())


def test_a_comment_in_another_character_code_is_not_taken_for_parameters() -> None:
    exif = Image.Exif()
    exif.get_ifd(IFD.Exif)[Base.UserComment] = b"ASCII\0\0\0{}"
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "jpeg", exif=exif)
    with pytest.raises(InvalidInput, match="holds no generation parameters"):
        read_parameters(file.getvalue())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a cat\nSteps: 20", "are not JSON"),
        ('{"prompt": ', "are not JSON"),
        ("[" * 30_000, "are not JSON"),
        ('{"seed": ' + "9" * 5000 + "}", "are not JSON"),
        ('["prompt"]', "are not a JSON object"),
        ('"' + "x" * MAX_PARAMETERS + '"', "at most 32500"),
    ],
)
def test_text_that_is_no_parameters_is_refused(text: str, problem: str) -> None:
    info = PngInfo()
    info.add_itxt("parameters", text)
    with pytest.raises(InvalidInput, match=rf"^image: holds .*{problem}$"):
        read_parameters(png_with(info))


def test_compressed_text_is_not_inflated_without_bound() -> None:
    info = PngInfo()
    info.add_itxt("parameters", "x" * 50_000_000, zip=True)
    data = png_with(info)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput, match="image"):
            read_parameters(data)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_pixels_are_not_decoded() -> None:
    text = b"parameters\0\0\0\0\0" + json.dumps(PARAMETERS).encode()
    header = struct.pack(">IIBBBBB", 8000, 8000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"iTXt", text), (b"IDAT", b"no pixels here"), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)
    assert read_parameters(data) == PARAMETERS


@settings(max_examples=300)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@given(
    image_format=st.sampled_from(FORMATS),
    edits=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 900),
)
def test_broken_files_give_parameters_or_invalid_input(
    image_format: str, edits: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(encode(np.zeros((8, 8, 3), np.uint8), image_format, PARAMETERS))
    for position, value in edits:
        data[position % len(data)] = value
    try:
        assert isinstance(read_parameters(bytes(data[: len(data) - cut % len(data)])), dict)
    except InvalidInput as error:
        assert error.parameter == "image"
