"""Colours as people see them: CIELAB, and which colour of the drawings is nearest."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drawings.palette import COLOURS

Pixels = NDArray[np.uint8]
"""[height, width, 3], sRGB."""
Lab = NDArray[np.float32]
"""[..., 3]: lightness 0 to 100, green to red, blue to yellow."""

_COMMON = 0.6  # share of the pixels; noise and soft edges leave more, a mixture of colours less
# From linear sRGB to X, Y, Z relative to the white point.
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    np.float32,
)
_XYZ /= _XYZ.sum(axis=1, keepdims=True)


def to_lab(pixels: Pixels) -> Lab:
    """SRGB to CIELAB under D65 (IEC 61966-2-1; CIE 15:2004), where equal distances look equally different."""
    srgb = np.asarray(pixels, np.float32) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ.T
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), xyz * (841 / 108) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def nearest_colours(lab: Lab) -> NDArray[np.str_]:
    """The name of the drawings' colour that is nearest to each of [..., 3]."""
    return np.array(list(COLOURS))[np.linalg.norm(lab[..., None, :] - _palette(), axis=-1).argmin(axis=-1)]


def common_colour(lab: Lab) -> str | None:
    """The name of the colour of some pixels, [n, 3]; None where too few of them have it."""
    name = str(nearest_colours(np.median(lab, axis=0)))
    return name if (nearest_colours(lab) == name).mean() >= _COMMON else None


def reduced(pixels: Pixels, short_side: int) -> Pixels:
    """The picture with its shorter side at most so long, each pixel the mean of those it replaces."""
    height, width = pixels.shape[:2]
    scale = short_side / min(height, width)
    if scale >= 1:
        return pixels
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


@cache
def _palette() -> Lab:
    return np.stack([to_lab((colour * 255).round().astype(np.uint8)) for colour in COLOURS.values()])
