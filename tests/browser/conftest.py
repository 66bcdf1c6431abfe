"""The page in a real Chromium, in front of a gateway that draws by itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
from made_up_gateway import KEY, MadeUpGateway, serving
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from visits import opened

WAIT_MS = 90_000
"""For what the page does within a moment, on a machine that is busy with other things."""


@pytest.fixture(scope="module")  # not for longer: in the thread of the tests it leaves no room for another event loop
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        missing = "no Chromium is installed; on Debian: apt-get install chromium"
        pytest.fail(missing) if "CI" in os.environ else pytest.skip(missing)
    # Chromium's sandbox does not work for root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def gateway() -> Iterator[MadeUpGateway]:
    with serving(MadeUpGateway()) as gateway:
        yield gateway


@pytest.fixture
def contexts(browser: Browser) -> Iterator[Callable[..., BrowserContext]]:
    """Makes browsers that nobody has used before; the pages in them must not complain."""
    made: list[BrowserContext] = []
    complaints: list[str] = []

    def watch(page: Page) -> None:
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            # The browser's own line about an answer of 4xx or 5xx is no fault of the page.
            lambda line: line.type == "error" and "Failed to load" not in line.text and complaints.append(line.text),
        )

    def make(**options: object) -> BrowserContext:
        context = browser.new_context(**options)  # type: ignore[arg-type]
        context.set_default_timeout(WAIT_MS)
        context.on("page", watch)
        made.append(context)
        return context

    yield make
    for context in made:
        context.close()
    assert not complaints


@pytest.fixture
def page(contexts: Callable[..., BrowserContext], gateway: MadeUpGateway) -> Page:
    """The page, ready to draw: it has a key and its form."""
    context = contexts()
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=gateway.url)
    return opened(context, gateway.url, KEY)
