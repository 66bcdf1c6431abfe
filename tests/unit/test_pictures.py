"""Picture files: their parameters are read, their pixels decoded, and many put on one sheet."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from tiny_sd_client import pictures
from tiny_sd_client.errors import TinySDError
from tiny_sd_client.pictures import MAX_PARAMETERS, InvalidImage, decode, grid, read_parameters
from tiny_sd_engine.images import encode

FORMATS = ["jpeg", "png", "webp"]
PARAMETERS: dict[str, object] = {"prompt": "a red cat", "guidance_scale": 7.5, "seed": 2**62 + 1}
NO_IMAGES = [b"", b"not an image", b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(99)]
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def png_with(info: PngInfo) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png", pnginfo=info)
    return file.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_the_error_is_one_of_the_clients_and_a_value_error() -> None:
    assert issubclass(InvalidImage, TinySDError)
    assert issubclass(InvalidImage, ValueError)


@pytest.mark.parametrize("data", NO_IMAGES)
def test_data_that_is_no_image_has_no_parameters_and_no_pixels(data: bytes) -> None:
    for read in (read_parameters, decode):
        with pytest.raises(InvalidImage, match=r"^is not a readable JPEG, PNG or WebP file$"):
            read(data)


@pytest.mark.parametrize("image_format", FORMATS)
def test_an_image_of_someone_else_holds_no_parameters(image_format: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, image_format)
    with pytest.raises(InvalidImage, match=r"^holds no generation parameters$"):
        read_parameters(file.getvalue())


def test_a_comment_in_another_character_code_is_not_taken_for_parameters() -> None:
    exif = Image.Exif()
    exif.get_ifd(IFD.Exif)[Base.UserComment] = b"ASCII\0\0\0{}"
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "jpeg", exif=exif)
    with pytest.raises(InvalidImage, match="holds no generation parameters"):
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
    with pytest.raises(InvalidImage, match=rf"^holds .*{problem}$"):
        read_parameters(png_with(info))


def test_compressed_text_is_not_inflated_without_bound() -> None:
    info = PngInfo()
    info.add_itxt("parameters", "x" * 50_000_000, zip=True)
    data = png_with(info)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidImage):
            read_parameters(data)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_parameters_are_read_without_decoding_the_pixels() -> None:
    text = b"parameters\0\0\0\0\0" + json.dumps(PARAMETERS).encode()
    header = struct.pack(">IIBBBBB", 8000, 8000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"iTXt", text), (b"IDAT", b"no pixels here"), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)
    assert read_parameters(data) == PARAMETERS
    with pytest.raises(InvalidImage):
        decode(data)


@settings(max_examples=300)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@given(
    image_format=st.sampled_from(FORMATS),
    edits=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 900),
)
def test_broken_files_give_a_result_or_the_error_of_this_module(
    image_format: str, edits: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(encode(np.zeros((8, 8, 3), np.uint8), image_format, PARAMETERS))
    for position, value in edits:
        data[position % len(data)] = value
    broken = bytes(data[: len(data) - cut % len(data)])
    for read, kind in ((read_parameters, dict), (decode, Image.Image)):
        with suppress(InvalidImage):
            assert isinstance(read(broken), kind)


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_is_decoded_to_rgb(image_format: str) -> None:
    image = decode(encode(np.full((24, 16, 3), 200, np.uint8), image_format, {}))
    assert (image.mode, image.size) == ("RGB", (16, 24))
    assert np.abs(np.asarray(image, np.int16) - 200).max() <= 2


def test_a_grid_holds_the_pictures_row_by_row_with_gaps() -> None:
    sheet = grid([Image.new("RGB", (10, 6), colour) for colour in (RED, GREEN, BLUE)], columns=2, gap=2)
    assert sheet.size == (2 + 10 + 2 + 10 + 2, 2 + 6 + 2 + 6 + 2)
    assert [sheet.getpixel(at) for at in [(2, 2), (11, 7), (14, 2), (2, 10), (14, 10)]] == [
        RED, RED, GREEN, BLUE, WHITE,
    ]  # fmt: skip
    assert [sheet.getpixel(at) for at in [(1, 1), (12, 2), (13, 2), (24, 2), (2, 8)]] == [WHITE] * 5


@pytest.mark.parametrize(("count", "cells"), [(1, (1, 1)), (2, (2, 1)), (4, (2, 2)), (5, (3, 2)), (7, (3, 3))])
def test_a_grid_is_about_square_by_default(count: int, cells: tuple[int, int]) -> None:
    assert grid([Image.new("RGB", (10, 10))] * count, gap=0).size == (10 * cells[0], 10 * cells[1])


def test_smaller_pictures_stand_in_the_middle_of_their_cell() -> None:
    sheet = grid([Image.new("RGB", (10, 10), RED), Image.new("L", (4, 6), 0)], gap=0)
    assert sheet.size == (20, 10)
    dark = np.argwhere(np.asarray(sheet).sum(axis=-1) == 0)
    assert dark.min(axis=0).tolist() == [2, 13]
    assert dark.max(axis=0).tolist() == [7, 16]


@pytest.mark.parametrize(("count", "columns"), [(25, None), (40, 1), (40, 40)])
def test_a_sheet_is_never_larger_than_its_bound_and_shows_every_picture(
    count: int, columns: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_SHEET", 1000)
    red, blue = Image.new("RGB", (200, 200), RED), Image.new("RGB", (200, 200), BLUE)
    sheet = grid([red] * (count - 1) + [blue], columns, gap=20)
    assert 990 <= max(sheet.size) <= 1000
    pixels = np.asarray(sheet)
    blue_share = (pixels == BLUE).all(axis=-1).sum() / (pixels != WHITE).any(axis=-1).sum()
    assert blue_share == pytest.approx(1 / count, rel=0.1)


def test_a_grid_of_nothing_or_without_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        grid([])
    with pytest.raises(ValueError, match="columns: got 0; allowed: 1 or more"):
        grid([Image.new("RGB", (8, 8))], columns=0)
