"""Reading an illustrated scene: which drawing is nearest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from PIL import Image

from drawings import Landscape, draw
from drawings.scene import SUBJECT_COLOURS, SUBJECTS, TIMES
from evaluation.lab import Lab, Pixels, to_lab

_THUMBNAIL = 24  # shorter side, in pixels, of the pictures that are compared
# CIELAB. A drawing differs from the nearest of these by 8 at most, by 26 where its colours have drifted; a picture of
# shapes by 29 at least.
_LARGEST_DIFFERENCE = 27.0


@dataclass(frozen=True)
class LandscapeReading:
    """Which illustrated scene a picture is nearest to; None where it is near none.

    difference: mean CIELAB distance from the nearest drawing
    """

    subject: str | None
    colour: str | None
    time: str | None
    difference: float


def read_landscape(pixels: Pixels) -> LandscapeReading:
    """Find the illustrated scene whose drawing is nearest."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    size = (round(_THUMBNAIL * width / short), round(_THUMBNAIL * height / short))
    names, drawings = _thumbnails(*size)
    differences = np.linalg.norm(drawings - _thumbnail(pixels, size), axis=-1).mean(axis=(1, 2))
    nearest = int(differences.argmin())
    difference = float(differences[nearest])
    if difference > _LARGEST_DIFFERENCE:
        return LandscapeReading(None, None, None, difference)
    return LandscapeReading(*names[nearest], difference)


@cache
def _thumbnails(width: int, height: int) -> tuple[list[tuple[str, str, str]], Lab]:
    """All illustrated scenes, each some times over as no two drawings are alike: names, [scenes, height, width, 3]."""
    scenes = [
        Landscape(subject=subject, colour=colour, time=time, variation=variation)
        for subject, colour, time, variation in product(SUBJECTS, SUBJECT_COLOURS, TIMES, range(4))
    ]
    drawings = [_thumbnail(draw(scene, 2 * width, 2 * height), (width, height)) for scene in scenes]
    return [(scene.subject, scene.colour, scene.time) for scene in scenes], np.stack(drawings)


def _thumbnail(pixels: Pixels, size: tuple[int, int]) -> Lab:
    return to_lab(np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX)))
