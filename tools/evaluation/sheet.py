"""A contact sheet: pictures with their prompts, and what is wrong with them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from evaluation.grading import THUMBNAIL, Graded

_COLUMNS = 8
_MARGIN = 8
_LINE = 15
_LINES = 6  # under a picture
_FONT_SIZE = 12
_CHARACTERS = 32  # in a line
_INK, _WRONG, _PAPER = "#22222A", "#D2201E", "#FFFFFF"


def contact_sheet(graded: Sequence[Graded]) -> Image.Image:
    """Up to eight pictures in a row. What is wrong stands in red: what was read, where something else was asked."""
    font = ImageFont.load_default(_FONT_SIZE)
    wide, tall = THUMBNAIL + 2 * _MARGIN, THUMBNAIL + 2 * _MARGIN + _LINES * _LINE
    columns = min(_COLUMNS, len(graded))
    sheet = Image.new("RGB", (columns * wide, math.ceil(len(graded) / columns) * tall), _PAPER)
    ink = ImageDraw.Draw(sheet)
    for number, picture in enumerate(graded):
        x, y = number % columns * wide + _MARGIN, number // columns * tall + _MARGIN
        right = all(picture.right.values())
        if not right:
            ink.rectangle(
                (x - 3, y - 3, x + picture.thumbnail.width + 2, y + picture.thumbnail.height + 2), fill=_WRONG
            )
        sheet.paste(picture.thumbnail, (x, y))
        y += THUMBNAIL + 4
        prompt = textwrap.wrap(picture.order.prompt, _CHARACTERS)
        faults = [] if right else textwrap.wrap(", ".join(_faults(picture)), _CHARACTERS)
        for line, colour in [*((line, _INK) for line in prompt), *((line, _WRONG) for line in faults)][:_LINES]:
            ink.text((x, y), line, fill=colour, font=font)
            y += _LINE
    return sheet


def _faults(picture: Graded) -> list[str]:
    """Like "shape: circle": the attributes that are wrong, and what they are instead."""
    wrong = (name for name, right in picture.right.items() if not right)
    return [f"{name}: {getattr(picture.reading, name) or 'not to be told'}" for name in wrong]
