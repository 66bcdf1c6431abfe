"""tools/sheets: pictures on one sheet, with words under each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFont
from PIL.ImageFont import FreeTypeFont

from sheets import Cell, Layout, Paragraph, draw_sheet, wrap

LAYOUT = Layout(columns=2, side=100, gap=20, font_size=12, border=1)
PROMPT = "three small white diamonds at the top on a black background"


@pytest.fixture(scope="module")
def font() -> FreeTypeFont:
    font = ImageFont.load_default(12)
    assert isinstance(font, FreeTypeFont)
    return font


def cell(colour: str, words: str = "", side: int = 100) -> Cell:
    return Cell(Image.new("RGB", (side, side), colour), [Paragraph(words)] if words else [])


def pixels(*cells: Cell, layout: Layout = LAYOUT) -> np.ndarray:
    return np.asarray(draw_sheet(cells, layout))


def inked(picture: np.ndarray) -> np.ndarray:
    """[height, width] bool: where the paper is not bare."""
    return (picture != 255).any(axis=-1)


def test_pictures_stand_in_rows_from_left_to_right():
    sheet = pixels(cell("red"), cell("blue"), cell("lime"))
    height, width, _ = sheet.shape
    assert width == 2 * 100 + 3 * 20
    assert (sheet[20:120, 20:120] == (255, 0, 0)).all()
    assert (sheet[20:120, 140:240] == (0, 0, 255)).all()
    below = sheet[120:, 20:120]
    assert ((below == (0, 255, 0)).all(axis=-1).sum(axis=0) == 100).all()
    assert not inked(sheet[122 : height - 20, 140:]).any()  # a row that is not full


def test_fewer_pictures_than_columns_make_a_narrower_sheet():
    assert pixels(cell("red")).shape[1] == 100 + 2 * 20


def test_a_sheet_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one picture"):
        draw_sheet([], LAYOUT)


def test_words_stand_centred_below_their_picture_and_nowhere_else():
    sheet = pixels(cell("red", PROMPT), cell("blue", "a blue square"), layout=replace(LAYOUT, border=0))
    assert not inked(sheet)[:, [*range(20), *range(120, 140), *range(240, 260)]].any()
    assert (sheet[20:120, 20:120] == (255, 0, 0)).all()
    for left in (20, 140):
        words = inked(sheet)[120 : -LAYOUT.gap, left : left + 100].any(axis=0).nonzero()[0]
        assert (words[0] + words[-1]) / 2 == pytest.approx(49.5, abs=1.5)
    assert not inked(sheet)[-LAYOUT.gap :].any()


def test_a_row_is_as_high_as_its_longest_words_need():
    short = pixels(cell("red", "one line"), cell("blue", "one line"))
    long = pixels(cell("red", "one line"), cell("blue", PROMPT))
    several = pixels(cell("red", "one line"), cell("blue", PROMPT), cell("lime", "one line"))
    assert len(long) > len(short)
    assert len(several) == len(long) + len(short) - LAYOUT.gap


def test_a_large_picture_is_reduced_and_a_small_one_stays_as_it_is():
    assert (pixels(cell("red", side=250))[20:120, 20:120] == (255, 0, 0)).all()
    small = pixels(cell("red", side=50))
    red = (small == (255, 0, 0)).all(axis=-1)
    assert red.sum() == 50 * 50
    assert red[45:95, 45:95].all()


def test_a_wide_picture_keeps_its_shape():
    wide = Cell(Image.new("RGB", (400, 200), "red"), [])
    assert (pixels(wide) == (255, 0, 0)).all(axis=-1).sum() == 100 * 50


def test_the_cell_that_was_given_is_not_changed():
    large = cell("red", side=250)
    draw_sheet([large], LAYOUT)
    assert large.picture.size == (250, 250)


def test_a_border_has_its_width_and_colour():
    bordered = Cell(Image.new("RGB", (100, 100), "white"), [], border="#D2201E")
    sheet = pixels(bordered, layout=replace(LAYOUT, border=3))
    assert ((sheet == (0xD2, 0x20, 0x1E)).all(axis=-1)).sum() == 106**2 - 100**2


def test_corners_are_round_and_soft():
    sheet = pixels(cell("red"), layout=replace(LAYOUT, corner=16, border=0))
    red = (sheet[20:120, 20:120] == (255, 0, 0)).all(axis=-1)
    assert red[50, 0] and red[0, 50]
    assert not red[0, 0]
    covered = (1 - sheet[..., 1] / 255).sum()  # white paper is green, too, and red is not
    assert covered == pytest.approx(100**2 - (4 - np.pi) * 16**2, rel=0.003)


@pytest.mark.parametrize("width", [75, 90, 150, 1000])
def test_lines_hold_all_words_in_order_and_fit(font: FreeTypeFont, width: int):
    lines = wrap(PROMPT, font, width)
    assert " ".join(lines) == PROMPT
    assert all(font.getlength(line) <= width for line in lines)


def test_lines_are_as_few_as_possible_and_about_equally_long(font: FreeTypeFont):
    words = "a small circle on a white background"
    assert wrap(words, font, font.getlength(words)) == [words]
    assert wrap(words, font, font.getlength(words) - 1) == ["a small circle on a", "white background"]


def test_a_word_that_is_too_wide_has_a_line_of_its_own(font: FreeTypeFont):
    assert wrap("an extraordinarily long word", font, 40) == ["an", "extraordinarily", "long", "word"]


def test_without_words_there_are_no_lines(font: FreeTypeFont):
    assert wrap(" ", font, 40) == []
