"""Text in lines, by the width that it takes in a font."""

from __future__ import annotations

from bisect import bisect_left

from PIL.ImageFont import FreeTypeFont


def wrap(text: str, font: FreeTypeFont, width: float) -> list[str]:
    """The text in as few lines as fit into `width` pixels, and those of about equal length.

    A word that is wider than that has a line of its own.
    """
    fewest = len(_fill(text, font, width))
    # The narrowest column that needs no more lines makes them the most equal.
    narrowest = bisect_left(range(int(width)), True, key=lambda width: len(_fill(text, font, width)) <= fewest)
    return _fill(text, font, min(narrowest, width))


def _fill(text: str, font: FreeTypeFont, width: float) -> list[str]:
    """Each line as full as it gets."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
