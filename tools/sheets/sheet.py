"""Rows of pictures, each with its words centred below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from PIL import Image, ImageDraw, ImageFont

from sheets.wrapping import wrap

_PAPER, _INK, _HAIRLINE = "#FFFFFF", "#22222A", "#DCDCE2"
_FINENESS = 4  # rounded corners are drawn so many times as large, and reduced


@dataclass(frozen=True)
class Layout:
    """The measures of a sheet, in pixels."""

    columns: int
    side: int
    """Of the square that a picture has; a larger picture is reduced to fit."""
    gap: int
    """Between the squares of a row, below the words, and at the edges."""
    font_size: int
    corner: int = 0
    """The radius of the pictures' corners."""
    border: int = 1
    """Around the pictures; a part of the gap."""


@dataclass(frozen=True)
class Paragraph:
    """Words, in a colour."""

    text: str
    colour: str = _INK


@dataclass(frozen=True, eq=False)
class Cell:
    """A picture, the words below it, and the colour of its border."""

    picture: Image.Image
    words: Sequence[Paragraph]
    border: str = _HAIRLINE


def draw_sheet(cells: Sequence[Cell], layout: Layout) -> Image.Image:
    """Put the cells on white paper, row by row. Every row is as high as its longest words need.

    Raises ValueError where there is nothing to show.
    """
    if not cells:
        raise ValueError("a sheet needs at least one picture")
    # Pillow's own, so that sheets look alike everywhere.
    font = cast("ImageFont.FreeTypeFont", ImageFont.load_default(layout.font_size))
    columns = min(layout.columns, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    lines = {cell: _lines(cell, font, layout.side) for cell in cells}
    leading = round(1.35 * layout.font_size)
    above = round(0.7 * layout.font_size)  # the words
    heights = [layout.side + above + leading * max(len(lines[cell]) for cell in row) + layout.gap for row in rows]
    pitch = layout.side + layout.gap
    sheet = Image.new("RGB", (columns * pitch + layout.gap, sum(heights) + layout.gap), _PAPER)
    ink = ImageDraw.Draw(sheet)
    top = layout.gap
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            left = layout.gap + column * pitch
            _paste(sheet, cell, (left, top), layout)
            for number, line in enumerate(lines[cell]):
                y = top + layout.side + above + number * leading
                ink.text((left + layout.side / 2, y), line.text, fill=line.colour, font=font, anchor="ma")
        top += height
    return sheet


def _lines(cell: Cell, font: ImageFont.FreeTypeFont, width: int) -> list[Paragraph]:
    return [Paragraph(line, words.colour) for words in cell.words for line in wrap(words.text, font, width)]


def _paste(sheet: Image.Image, cell: Cell, corner: tuple[int, int], layout: Layout) -> None:
    """The picture in the middle of the square whose upper left corner this is."""
    picture = cell.picture.convert("RGB")
    picture.thumbnail((layout.side, layout.side), Image.Resampling.LANCZOS)
    x, y = (start + (layout.side - length) // 2 for start, length in zip(corner, picture.size, strict=True))
    frame = _rounded(picture.width + 2 * layout.border, picture.height + 2 * layout.border, layout.corner)
    sheet.paste(cell.border, (x - layout.border, y - layout.border), frame)
    sheet.paste(picture, (x, y), _rounded(*picture.size, layout.corner))


def _rounded(width: int, height: int, corner: int) -> Image.Image:
    """A mask of a rectangle with round corners."""
    large = Image.new("L", (width * _FINENESS, height * _FINENESS))
    box = (0, 0, large.width - 1, large.height - 1)
    ImageDraw.Draw(large).rounded_rectangle(box, corner * _FINENESS, fill=255)
    return large.resize((width, height), Image.Resampling.BOX)
