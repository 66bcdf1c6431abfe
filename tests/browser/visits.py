"""Visits to the page."""

from __future__ import annotations

from playwright.sync_api import BrowserContext, Page


def opened(context: BrowserContext, url: str, key: str) -> Page:
    """The page at ``url`` with its form built, by somebody with ``key``, or with none if that is empty."""
    page = context.new_page()
    page.goto(f"{url}/#key={key}" if key else url)
    page.get_by_label("Prompt", exact=True).wait_for()
    return page
