"""Pixels to JPEG, PNG or WebP files that carry the parameters they were made with.

JPEG and WebP carry them as JSON in the EXIF tag UserComment, PNG in a text chunk named ``parameters``; both are where
the image tools of the field look. ``tiny_sd_client.pictures`` reads them back.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from tiny_sd_engine.errors import InvalidInput

SOFTWARE = "Tiny-SD on Triton"
MAX_PARAMETERS = 65_000
"""Bytes that the parameters may take in UTF-16: a JPEG's EXIF holds 65,533, and its other tags need some of them."""

# By format, Pillow's options for it. JPEG: above 95 files grow fast for no visible gain; full chroma keeps the edges of
# saturated colours sharp. PNG: higher levels take twice the time for a seventh less. WebP: as lossy WebP halves chroma
# whatever its quality, more than 90 buys little.
_OPTIONS: dict[str, dict[str, object]] = {
    "jpeg": {"quality": 95, "subsampling": "4:4:4"},
    "png": {"compress_level": 1},
    "webp": {"quality": 90},
}
_PNG_KEY = "parameters"
# EXIF 2.3, 4.6.5: a UserComment begins with its character code. The byte order of UNICODE is left open there; web UIs
# for Stable Diffusion write big-endian, so their readers expect it, and the whole EXIF is big-endian here to agree.
_CHARACTER_CODE = b"UNICODE\0"
_ENCODING = "utf-16-be"


def encode(pixels: NDArray[np.uint8], image_format: str, parameters: Mapping[str, object]) -> bytes:
    """Encode an image together with the parameters to make it again; equal arguments give equal bytes.

    pixels: [h, w, 3] uint8, RGB
    image_format: jpeg, png or webp
    parameters: what JSON can hold; no lone surrogates

    Raises InvalidInput, naming ``image_format``, for another format, and, naming ``parameters``, for more than
    MAX_PARAMETERS bytes of them, in every format alike.
    """
    if image_format not in _OPTIONS:
        raise InvalidInput("image_format", f"is {image_format!r}; must be one of {', '.join(_OPTIONS)}")
    text = json.dumps(parameters, ensure_ascii=False, sort_keys=True, allow_nan=False)
    comment = text.encode(_ENCODING)
    if len(comment) > MAX_PARAMETERS:
        raise InvalidInput("parameters", f"are {len(comment)} bytes long in UTF-16; at most {MAX_PARAMETERS}")
    metadata = {"pnginfo": _png_info(text)} if image_format == "png" else {"exif": _exif(comment)}
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format, **_OPTIONS[image_format], **metadata)
    return file.getvalue()


def image_parameters(parameters: Mapping[str, object], index: int) -> dict[str, object]:
    """What picture ``index`` of a generation carries: the parameters that make it again, alone."""
    return {**parameters, "seed": int(str(parameters["seed"])) + index, "samples": 1}


def _exif(comment: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.endian = ">"
    exif[Base.Software] = SOFTWARE
    exif.get_ifd(IFD.Exif)[Base.UserComment] = _CHARACTER_CODE + comment
    return exif


def _png_info(text: str) -> PngInfo:
    info = PngInfo()
    info.add_text("Software", SOFTWARE)
    info.add_itxt(_PNG_KEY, text)
    return info
