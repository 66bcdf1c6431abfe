"""Reading a picture of shapes by plain image analysis: no model has a say in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from drawings.drawing import RADII
from drawings.shapes import SHAPES
from evaluation.lab import Lab, Pixels, common_colour, reduced, to_lab

Floats = NDArray[np.float32]

_SHORT_SIDE = 256  # pixels; larger pictures are reduced to it, which also averages noise
_BORDER = 0.03  # width of the strip along the edges that shows the background, of the shorter side
_STANDS_OUT = 25.0  # CIELAB distance from the background: more than shadows and noise, less than any two colours
_CONTRAST = 60.0  # what differs by half of it is an object, however much the largest object differs
_LEAST_AREA = 0.003  # of the shorter side squared; a small cross has 0.015
_WIDEST = 0.95  # what reaches further across the picture, both ways, is no object on a background
_SAME_AREA = 0.35  # what is smaller than this share of the largest piece is no further object
_BRIDGE = 0.25  # what joins two objects is thinner than this share of the thickest object
_GRID = 48  # shapes are compared on so many cells squared
_LEAST_MATCH = 0.7  # intersection over union with the ideal shape
_NEAR_EDGE = 0.42  # a middle nearer to an edge than this share of the picture is not in the center


@dataclass(frozen=True)
class ShapesReading:
    """What a picture of shapes shows. All but the background is None where no object stands out from it.

    Colours are None for a mixture; colour and shape also where the objects differ in it, and shape for what looks like
    none that we know.
    match: how well the objects fit the nearest shapes, 0 to 1; the worst of them
    """

    background: str | None = None
    colour: str | None = None
    shape: str | None = None
    count: int | None = None
    size: str | None = None
    position: str | None = None
    match: float = 0.0


@dataclass(frozen=True, eq=False)
class Piece:
    """An object: where it is in the picture, and how far each pixel there has its colour, 0 to 1."""

    rows: slice
    columns: slice
    cover: Floats


def read_shapes(pixels: Pixels) -> ShapesReading:
    """Read a picture of equal shapes on a plain background."""
    lab = to_lab(reduced(pixels, _SHORT_SIDE))
    border = _border(lab)
    background = common_colour(border)
    pieces = _pieces(_coverage(lab, np.median(border, axis=0)))
    if not pieces:
        return ShapesReading(background)
    fits = [_nearest_shape(piece.cover) for piece in pieces]
    match = min(fit.match for fit in fits)
    radius = float(np.mean([fit.radius for fit in fits])) / min(lab.shape[:2])
    return ShapesReading(
        background=background,
        colour=_agreed(_piece_colour(piece, lab) for piece in pieces),
        shape=_agreed(fit.shape for fit in fits) if match >= _LEAST_MATCH else None,
        count=len(pieces),
        size=min(RADII, key=lambda size: abs(math.log(RADII[size] / radius))),
        position=_position(pieces, lab.shape[:2]),
        match=match,
    )


def _border(lab: Lab) -> Lab:
    """The pixels along the edges, [n, 3]."""
    strip = max(1, round(_BORDER * min(lab.shape[:2])))
    border = np.ones(lab.shape[:2], bool)
    border[strip:-strip, strip:-strip] = False
    return lab[border]


def _coverage(lab: Lab, ground: Lab) -> Floats:
    """How far each pixel is from the background, 0, to something else, 1; edges run through one half."""
    away = ndimage.gaussian_filter(lab - ground, (0.7, 0.7, 0))
    distance = np.linalg.norm(away, axis=-1)
    pieces, count = ndimage.label(distance > _STANDS_OUT)
    if not count:
        return np.zeros(distance.shape, np.float32)
    largest = 1 + int(np.bincount(pieces.ravel())[1:].argmax())
    full = float(np.median(distance[pieces == largest]))
    return np.clip(distance / min(full, _CONTRAST), 0, 1)


def _pieces(cover: Floats) -> list[Piece]:
    labels = _objects(cover > 0.5)
    areas = np.bincount(labels.ravel())[1:]
    if not areas.size:
        return []
    least = max(_SAME_AREA * areas.max(), _LEAST_AREA * min(cover.shape) ** 2)
    return [
        Piece(*window, np.where(labels[window] == number, cover[window], 0))
        for number, (window, area) in enumerate(zip(ndimage.find_objects(labels), areas, strict=True), 1)
        if area >= least
        and any(span.stop - span.start < _WIDEST * n for span, n in zip(window, cover.shape, strict=True))
    ]


def _objects(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number what hangs together by more than a thin bridge; 0 is the background, and specks."""
    together, _ = ndimage.label(mask)
    depth = ndimage.distance_transform_edt(mask)
    cores, _ = ndimage.label(depth > _BRIDGE * depth.max())
    nearest = tuple(ndimage.distance_transform_edt(cores == 0, return_distances=False, return_indices=True))
    return np.where(together == together[nearest], cores[nearest], 0)


def _piece_colour(piece: Piece, lab: Lab) -> str | None:
    mask = piece.cover > 0.5
    inner = ndimage.binary_erosion(mask, iterations=2)
    return common_colour(lab[piece.rows, piece.columns][inner if inner.any() else mask])


def _agreed(names: Iterable[str | None]) -> str | None:
    """The one name that all bear, if they do."""
    different = set(names)
    return different.pop() if len(different) == 1 else None


@dataclass(frozen=True)
class Fit:
    """The shape that an object is nearest to: intersection over union with it, and its radius in pixels."""

    shape: str
    match: float
    radius: float


def _nearest_shape(cover: Floats) -> Fit:
    found, half = _normalized(cover)
    fits = []
    for shape, (ideals, ideal_half) in _ideals().items():
        overlaps = np.minimum(found, ideals).sum(axis=(1, 2)) / np.maximum(found, ideals).sum(axis=(1, 2))
        fits.append(Fit(shape, float(overlaps.max()), half / ideal_half))
    return max(fits, key=lambda fit: fit.match)


@cache
def _ideals() -> Mapping[str, tuple[Floats, float]]:
    """The shapes, turned a little each way, [turns, _GRID, _GRID], and the extent of each that has radius 1."""
    axis = np.linspace(-1.5, 1.5, 240, dtype=np.float32)
    x, y = axis[None], axis[:, None]
    pixel = float(axis[1] - axis[0])
    ideals = {}
    for name, distance in SHAPES.items():
        grids = []
        for angle in (-0.1, 0.1, 0.0):
            cos, sin = math.cos(angle), math.sin(angle)
            cover = np.clip(0.5 - distance(x * cos + y * sin, y * cos - x * sin) / pixel, 0, 1)
            grid, half = _normalized(cover)
            grids.append(grid)
        ideals[name] = (np.stack(grids), half * pixel)  # half: of the last one, which stands upright
    return ideals


def _normalized(cover: Floats) -> tuple[Floats, float]:
    """A shape moved to the middle of a grid and scaled to one size; and its extent before that, in pixels.

    The extent is half the geometric mean of width and height.
    """
    rows, columns = (np.flatnonzero((cover > 0.5).any(axis=axis)) for axis in (1, 0))
    tall, wide = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    half = math.sqrt(tall * wide) / 2
    axis = np.linspace(-1.4, 1.4, _GRID) * half
    where = np.meshgrid((rows[0] + rows[-1]) / 2 + axis, (columns[0] + columns[-1]) / 2 + axis, indexing="ij")
    return ndimage.map_coordinates(cover, where, order=1), half


def _position(pieces: Sequence[Piece], shape: tuple[int, ...]) -> str:
    """Where the middle of all objects together is."""
    rows = _side([piece.rows for piece in pieces], shape[0], ("top", "bottom"))
    columns = _side([piece.columns for piece in pieces], shape[1], ("left", "right"))
    return " ".join(filter(None, (rows, columns))) or "center"


def _side(spans: Sequence[slice], length: int, sides: tuple[str, str]) -> str:
    middle = (min(span.start for span in spans) + max(span.stop for span in spans)) / 2 / length
    if middle < _NEAR_EDGE:
        return sides[0]
    return sides[1] if middle > 1 - _NEAR_EDGE else ""
