"""Pictures on one sheet, with words under each."""

from sheets.sheet import Cell, Layout, Paragraph, draw_sheet
from sheets.wrapping import wrap

__all__ = ["Cell", "Layout", "Paragraph", "draw_sheet", "wrap"]
