"""Picture files: the parameters they were made with, their pixels, and many of them on one sheet.

The server writes the parameters as JSON into the EXIF tag UserComment of JPEG and WebP, and into a text chunk named
``parameters`` of PNG. Needs only Pillow.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence

from PIL import Image
from PIL.ExifTags import IFD, Base

from tiny_sd_client.errors import TinySDError

MAX_PARAMETERS = 65_000
"""Bytes that the parameters in a file may take in UTF-16; the server writes no more."""
MAX_SHEET = 8192
"""Pixels that a side of a sheet may have: 200 MB of memory at most, and less than what Pillow takes for an attack."""

_FORMATS = ("JPEG", "PNG", "WEBP")
_PNG_KEY = "parameters"
# EXIF 2.3, 4.6.5: a UserComment begins with its character code. UNICODE is big-endian here.
_CHARACTER_CODE = b"UNICODE\0"
_ENCODING = "utf-16-be"


class InvalidImage(TinySDError, ValueError):
    """A file that is no JPEG, PNG or WebP picture, or that holds no readable parameters."""


def read_parameters(data: bytes) -> dict[str, object]:
    """Read the parameters that the picture file ``data`` was made with, without decoding its pixels.

    They are JSON as it stands there; :func:`tiny_sd_client.parameters.parse` checks them. Raises :class:`InvalidImage`
    for data that is no such file or holds no parameters, and for parameters that are too long or no JSON object.
    """
    text = _embedded_text(data)
    if text is None:
        raise InvalidImage("holds no generation parameters")
    if len(text) > MAX_PARAMETERS // 2:
        raise InvalidImage(f"holds {len(text)} characters of parameters; at most {MAX_PARAMETERS // 2}")
    try:
        parameters = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidImage("holds generation parameters that are not JSON") from error
    if not isinstance(parameters, dict):
        raise InvalidImage("holds generation parameters that are not a JSON object")
    return parameters


def decode(data: bytes) -> Image.Image:
    """Decode the picture file ``data``, in RGB. Raises :class:`InvalidImage` for what is no JPEG, PNG or WebP file."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's parsers raise whatever a broken file makes them stumble over
        raise InvalidImage("is not a readable JPEG, PNG or WebP file") from error


def grid(images: Sequence[Image.Image], columns: int | None = None, gap: int = 8) -> Image.Image:
    """Put ``images`` on one white sheet, row by row, each in the middle of a cell as large as the largest of them.

    columns: pictures in a row; by default as many as there are rows, or one more
    gap: pixels between pictures and around them

    What would be larger than :data:`MAX_SHEET` pixels a side is scaled down to it. Raises ValueError for no images and
    for less than one column.
    """
    if not images:
        raise ValueError("a sheet needs at least one picture")
    columns = columns_for(len(images)) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns: got {columns}; allowed: 1 or more")
    rows = math.ceil(len(images) / columns)
    pitch_x = max(image.width for image in images) + gap
    pitch_y = max(image.height for image in images) + gap
    scale = min(1.0, MAX_SHEET / (columns * pitch_x + gap), MAX_SHEET / (rows * pitch_y + gap))

    def size(width: int, height: int) -> tuple[int, int]:
        return max(1, int(width * scale)), max(1, int(height * scale))

    sheet = Image.new("RGB", size(columns * pitch_x + gap, rows * pitch_y + gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left = gap + column * pitch_x + (pitch_x - gap - image.width) / 2
        top = gap + row * pitch_y + (pitch_y - gap - image.height) / 2
        picture = image.convert("RGB")
        if scale < 1:
            picture = picture.resize(size(*image.size))
        sheet.paste(picture, (int(left * scale), int(top * scale)))
    return sheet


def columns_for(count: int) -> int:
    """How many columns a sheet of ``count`` pictures gets: about as many as it gets rows."""
    return math.ceil(math.sqrt(count))


def _embedded_text(data: bytes) -> str | None:
    """Return what stands where the server writes the parameters, None where nothing does."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.format == "PNG":
                return image.info.get(_PNG_KEY)
            comment = image.getexif().get_ifd(IFD.Exif).get(Base.UserComment, b"")
    except Exception as error:  # Pillow's parsers raise whatever a broken file makes them stumble over
        raise InvalidImage("is not a readable JPEG, PNG or WebP file") from error
    if not isinstance(comment, bytes) or not comment.startswith(_CHARACTER_CODE):
        return None
    return comment.removeprefix(_CHARACTER_CODE).decode(_ENCODING, errors="replace")
