"""A contact sheet: pictures with their prompts, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from evaluation.grading import THUMBNAIL, Graded
from sheets import Cell, Layout, Paragraph, draw_sheet

_LAYOUT = Layout(columns=8, side=THUMBNAIL, gap=16, font_size=12, border=3)
_WRONG, _RIGHT = "#D2201E", "#FFFFFF"


def contact_sheet(graded: Sequence[Graded]) -> Image.Image:
    """Up to eight pictures in a row. What is wrong stands in red: what was read, where something else was asked."""
    return draw_sheet([_cell(picture) for picture in graded], _LAYOUT)


def _cell(picture: Graded) -> Cell:
    words = [Paragraph(picture.order.prompt)]
    faults = _faults(picture)
    if faults:
        words.append(Paragraph(", ".join(faults), _WRONG))
    return Cell(picture.thumbnail, words, border=_WRONG if faults else _RIGHT)


def _faults(picture: Graded) -> list[str]:
    """Like "shape: circle": the attributes that are wrong, and what they are instead."""
    wrong = (name for name, right in picture.right.items() if not right)
    return [f"{name}: {getattr(picture.reading, name) or 'not to be told'}" for name in wrong]
