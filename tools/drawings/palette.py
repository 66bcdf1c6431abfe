"""The colours of the drawings. They lie far apart, so that the nearest one can be told from pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_HEX: Mapping[str, str] = {
    "red": "E0312F",
    "orange": "F5851F",
    "yellow": "FFD83D",
    "green": "35A853",
    "blue": "2874DE",
    "purple": "8A3FAB",
    "pink": "F791BE",
    "white": "FAF9F5",
    "black": "22222A",
}


def rgb(code: str) -> NDArray[np.float32]:
    """The colour of six hexadecimal digits: [3] float32, sRGB, 0 to 1."""
    return np.frombuffer(bytes.fromhex(code), np.uint8).astype(np.float32) / 255


COLOURS: Mapping[str, NDArray[np.float32]] = {name: rgb(code) for name, code in _HEX.items()}
"""Name to [3] float32, sRGB, 0 to 1."""
