"""Text and pictures that a terminal shows as they are meant."""

from __future__ import annotations

import unicodedata

from PIL import Image
from rich.color import Color
from rich.segment import Segment, Segments
from rich.style import Style


def printable(text: str) -> str:
    r"""``text`` without what makes a terminal act or hide something: such characters become their codes.

    That is control, format (direction marks, invisible characters) and line-breaking characters. Whatever comes from a
    server or a file is shown through this.

    >>> printable("\x1b[2Jgone")
    '\\x1b[2Jgone'
    """
    return "".join(character if _harmless(character) else _code(character) for character in text)


def _harmless(character: str) -> bool:
    category = unicodedata.category(character)
    return not category.startswith("C") and category not in ("Zl", "Zp")


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def half_blocks(image: Image.Image, columns: int, rows: int) -> Segments:
    """Draw ``image`` on at most ``columns`` x ``rows`` characters, each of which shows two pixels, one over the other.

    Smaller images are not enlarged.
    """
    picture = image.convert("RGB")
    picture.thumbnail((columns, 2 * rows))
    picture = picture.crop((0, 0, picture.width, max(2, picture.height // 2 * 2)))
    pixels, line = picture.tobytes(), 3 * picture.width
    segments = []
    for top in range(0, len(pixels), 2 * line):
        for above in range(top, top + line, 3):
            below = above + line
            style = Style(
                color=Color.from_rgb(*pixels[above : above + 3]), bgcolor=Color.from_rgb(*pixels[below : below + 3])
            )
            segments.append(Segment("▀", style))
        segments.append(Segment.line())
    return Segments(segments)
