"""The playground's key: asked for once, kept in this browser, and in no address."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from made_up_gateway import KEY, MadeUpGateway
from playwright.sync_api import BrowserContext, Page, Route, expect
from visits import opened


@pytest.fixture
def page(contexts: Callable[..., BrowserContext], gateway: MadeUpGateway) -> Page:
    """The page as somebody sees it who has no key yet."""
    return opened(contexts(), gateway.url, key="")


def begin(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("misty hills")
    page.keyboard.press("Control+Enter")


def test_is_taken_from_the_address_and_removed_from_it(page: Page, gateway: MadeUpGateway) -> None:
    page.goto("about:blank")
    page.goto(f"{gateway.url}/#key={KEY}")
    expect(page.locator("#credits")).to_have_text("1,000 credits")
    assert page.url == f"{gateway.url}/"
    page.go_back()
    assert KEY not in page.url
    page.go_forward()
    assert KEY not in page.url
    page.reload()
    begin(page)
    expect(page.locator("#credits")).to_have_text("999 credits")


def test_is_taken_from_an_address_that_is_opened_on_the_page(page: Page, gateway: MadeUpGateway) -> None:
    page.evaluate("key => { location.hash = `key=${key}` }", KEY)
    expect(page.locator("#credits")).to_have_text("1,000 credits")
    assert page.url == f"{gateway.url}/"


def test_is_asked_for_when_it_is_needed_and_the_drawing_goes_on(page: Page, gateway: MadeUpGateway) -> None:
    begin(page)
    page.get_by_role("dialog", name="Your API key").wait_for()
    page.get_by_label("Key", exact=True).fill(f"  {KEY} ")
    page.keyboard.press("Enter")
    page.locator("#stage[data-state=done]").wait_for()
    assert len(gateway.asked) == 1
    page.keyboard.press("Control+Enter")
    expect(page.locator("#credits")).to_have_text("998 credits")


@pytest.mark.parametrize("way", ["Not now", "Escape"])
def test_need_not_be_given(page: Page, gateway: MadeUpGateway, way: str) -> None:
    begin(page)
    dialog = page.get_by_role("dialog", name="Your API key")
    dialog.wait_for()
    if way == "Escape":
        page.keyboard.press(way)
    else:
        dialog.get_by_role("button", name=way).click()
    expect(dialog).to_be_hidden()
    expect(page.locator("#stage")).to_have_attribute("data-state", "idle")
    assert gateway.asked == []


def test_an_empty_one_is_not_sent(page: Page) -> None:
    page.get_by_role("button", name="Add key").click()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Paste the key here.")).to_be_visible()


def test_can_be_forgotten(page: Page, gateway: MadeUpGateway) -> None:
    page.goto(f"{gateway.url}/#key={KEY}")
    page.get_by_role("button", name="Key", exact=True).click()
    page.get_by_role("button", name="Forget the key").click()
    expect(page.get_by_role("button", name="Add key")).to_be_visible()
    expect(page.locator("#credits")).to_be_hidden()
    page.reload()
    begin(page)
    expect(page.get_by_role("dialog", name="Your API key")).to_be_visible()


def test_what_a_forgotten_one_has_left_is_not_told(page: Page, gateway: MadeUpGateway) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/credits", hold)
    page.goto(f"{gateway.url}/#key={KEY}")
    page.get_by_role("button", name="Key", exact=True).click()
    while not held:
        page.wait_for_timeout(10)
    page.get_by_role("button", name="Forget the key").click()
    with page.expect_response("**/v1/credits") as answer:
        held[0].continue_()
    answer.value.finished()
    page.evaluate("fetch('v1/parameters').then((answer) => answer.text())")  # by its answer the page has read the other
    expect(page.locator("#credits")).to_be_hidden()


def test_is_never_shown(page: Page, gateway: MadeUpGateway) -> None:
    page.goto(f"{gateway.url}/#key={KEY}")
    expect(page.locator("#credits")).to_have_text("1,000 credits")
    begin(page)
    page.locator("#stage[data-state=done]").wait_for()
    page.get_by_role("button", name="Key", exact=True).click()
    assert KEY not in page.content()
    expect(page.get_by_label("Key", exact=True)).to_have_value("")
