"""The playground for everybody: screen readers, keyboards, small screens, both colour schemes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from made_up_gateway import KEY, MadeUpGateway, Refusal
from playwright.sync_api import BrowserContext, Page, expect
from visits import opened

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}
WIDE = {"width": 1720, "height": 980}


def begin(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("misty hills")
    page.keyboard.press("Control+Enter")


def be_idle(page: Page, gateway: MadeUpGateway) -> None:
    page.get_by_text("Advanced").click()


def be_drawing(page: Page, gateway: MadeUpGateway) -> None:
    gateway.hold_at = 10
    begin(page)
    page.locator("img.preview").wait_for()


def be_done(page: Page, gateway: MadeUpGateway) -> None:
    page.get_by_role("radiogroup", name="Pictures").get_by_label("2").check()
    begin(page)
    page.locator("#stage[data-state=done]").wait_for()
    expect(page.locator("#thumbnails img")).to_have_count(1)


def be_refused(page: Page, gateway: MadeUpGateway) -> None:
    gateway.refusals.append(Refusal(429, "the server is full", {"retry-after": "30"}))
    begin(page)
    page.get_by_role("alert").wait_for()


def be_corrected(page: Page, gateway: MadeUpGateway) -> None:
    page.get_by_label("Steps", exact=True).fill("5")
    begin(page)
    page.get_by_text("Allowed: an integer from 20 to 100.").wait_for()


def be_asked_for_a_key(page: Page, gateway: MadeUpGateway) -> None:
    page.get_by_role("button", name="Key").click()
    page.keyboard.press("Enter")
    page.get_by_text("Paste the key here.").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("state", [be_idle, be_drawing, be_done, be_refused, be_corrected, be_asked_for_a_key])
def test_breaks_no_rule_of_axe(
    contexts: Callable[..., BrowserContext],
    gateway: MadeUpGateway,
    state: Callable[[Page, MadeUpGateway], None],
    viewport: dict[str, int],
    scheme: str,
) -> None:
    # Without motion, so that nothing is half way between two colours.
    page = opened(contexts(viewport=viewport, color_scheme=scheme, reduced_motion="reduce"), gateway.url, KEY)
    state(page, gateway)
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


@pytest.mark.parametrize("state", [be_idle, be_drawing, be_done, be_refused])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP, WIDE], ids=["phone", "desktop", "wide"])
def test_fits_the_screen_sideways(
    contexts: Callable[..., BrowserContext],
    gateway: MadeUpGateway,
    state: Callable[[Page, MadeUpGateway], None],
    viewport: dict[str, int],
) -> None:
    page = opened(contexts(viewport=viewport), gateway.url, KEY)
    state(page, gateway)
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]


def test_a_phone_sees_the_drawing_begin(contexts: Callable[..., BrowserContext], gateway: MadeUpGateway) -> None:
    page = opened(contexts(viewport=PHONE, has_touch=True, is_mobile=True, reduced_motion="reduce"), gateway.url, KEY)
    gateway.hold_at = 10
    page.get_by_label("Prompt", exact=True).fill("misty hills")
    page.get_by_role("button", name="Generate").tap()
    expect(page.locator("img.preview")).to_be_in_viewport(ratio=0.9)
    expect(page.locator("#status")).to_be_in_viewport()
    expect(page.get_by_role("button", name="Cancel")).to_be_in_viewport()


def test_everything_can_be_reached_and_seen_with_the_keyboard(page: Page, gateway: MadeUpGateway) -> None:
    be_done(page, gateway)
    page.get_by_text("Advanced").click()
    reached: list[str] = []
    ends = 0  # of the page: what comes between two of them is one round
    while ends < 2:
        page.keyboard.press("Tab")
        name, visible = page.evaluate(
            """() => {
                const { activeElement: element } = document;
                if (element === document.body) return [null, true];
                const outlined = element.closest(".choices") ?? element;
                const name = element.ariaLabel || element.labels?.[0]?.textContent || element.querySelector("img")?.alt
                    || element.textContent.trim();
                return [name, getComputedStyle(outlined).outlineStyle !== "none"];
            }"""
        )
        assert visible, name
        ends += name is None
        if ends == 1 and name is not None:
            reached.append(name)
    expected = ["API", "Licence", "Key", "Prompt", "Negative prompt", "512", "512", "2", "Steps", "Seed", "Random"]
    assert [name for name in reached if name in expected] == expected
    for name in ("Scheduler", "Guidance", "jpeg", "curl", "Python", "misty hills", "Remove: misty hills", "Clear"):
        assert name in reached
    assert not [name for name in reached if "slider" in name]


def test_nothing_moves_for_those_who_do_not_want_it(
    contexts: Callable[..., BrowserContext], gateway: MadeUpGateway
) -> None:
    page = opened(contexts(reduced_motion="reduce"), gateway.url, KEY)
    gateway.hold_at = 0
    begin(page)
    page.get_by_text("Waiting for the server").wait_for()
    assert page.evaluate("document.getAnimations().length") == 0
