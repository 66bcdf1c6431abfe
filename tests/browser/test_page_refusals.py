"""What the playground makes of a refusal: beside the field that it names, or above the pictures with a way to go on."""

from __future__ import annotations

import re
import time

import pytest
from made_up_gateway import KEY, MadeUpGateway, Refusal
from playwright.sync_api import Locator, Page, expect

OTHER_KEY = "tsd_" + "o" * 43


def begin(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("misty hills")
    page.keyboard.press("Control+Enter")


def done(page: Page) -> Locator:
    return page.locator("#stage[data-state=done]")


@pytest.mark.parametrize(
    ("label", "value", "problem"),
    [
        ("Prompt", "   ", "Say what the picture should show."),
        ("Prompt", "a" * 4001, "Has 4001 characters. Allowed: at most 4000."),
        ("Steps", "5", "Allowed: an integer from 20 to 100."),
        ("Steps", "20.5", "Allowed: an integer from 20 to 100."),
        ("Steps", "", "Allowed: an integer from 20 to 100."),
        ("Seed", "seven", "Allowed: an integer from 0 to 9223372036854775804, or nothing for a random one."),
        (
            "Seed",
            "9223372036854775805",
            "Allowed: an integer from 0 to 9223372036854775804, or nothing for a random one.",
        ),
    ],
)
def test_wrong_input_is_shown_beside_its_field(
    page: Page, gateway: MadeUpGateway, label: str, value: str, problem: str
) -> None:
    page.get_by_label("Prompt", exact=True).fill("misty hills")
    field = page.get_by_label(label, exact=True)
    field.fill(value)
    page.keyboard.press("Control+Enter")
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_accessible_description(re.compile("^" + re.escape(problem)))
    expect(page.get_by_text(problem)).to_be_visible()
    assert gateway.asked == []

    field.press("End")
    field.press_sequentially("1")
    expect(page.get_by_text(problem)).to_be_hidden()
    expect(field).not_to_have_attribute("aria-invalid", "true")


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(422, "guidance_scale: got 5.0; allowed: a number from 0.1 to 4"),
        Refusal(422, "got 5.0; allowed: a number from 0.1 to 4", parameter="guidance_scale"),
    ],
)
def test_what_the_gateway_has_against_a_parameter_is_shown_beside_its_field(
    page: Page, gateway: MadeUpGateway, refusal: Refusal
) -> None:
    gateway.refusals.append(refusal)
    begin(page)
    field = page.get_by_label("Guidance", exact=True)
    expect(field).to_be_focused()  # in the advanced section, which has opened
    expect(field).to_have_accessible_description(re.compile("^Got 5.0; allowed: a number from 0.1 to 4. "))
    expect(page.get_by_role("alert")).to_be_hidden()


def test_what_the_gateway_has_against_one_of_several_choices_is_shown_beside_them(
    page: Page, gateway: MadeUpGateway
) -> None:
    gateway.refusals.append(Refusal(422, "img_width: got 512; allowed: 768"))
    begin(page)
    widths = page.get_by_role("radiogroup", name="Width")
    expect(widths).to_have_attribute("aria-invalid", "true")
    expect(widths.get_by_label("512")).to_be_focused()
    expect(page.get_by_text("Got 512; allowed: 768.")).to_be_visible()


def test_a_key_that_the_gateway_does_not_know_can_be_replaced(page: Page, gateway: MadeUpGateway) -> None:
    del gateway.credits[KEY]
    gateway.credits[OTHER_KEY] = 5.0
    begin(page)
    failure = page.get_by_role("alert")
    expect(failure).to_contain_text("The gateway does not know this key")
    failure.get_by_role("button", name="Enter another key").click()
    field = page.get_by_label("Key", exact=True)
    expect(field).to_be_focused()

    field.fill("tsd_wrong")
    field.press("Enter")
    expect(field).to_have_accessible_description(re.compile("^The gateway does not know this key."))
    expect(field).to_have_attribute("aria-invalid", "true")

    field.fill(OTHER_KEY)
    field.press("Enter")
    done(page).wait_for()
    expect(page.locator("#credits")).to_have_text("4 credits")


def test_tells_who_has_not_enough_credits_what_to_do(page: Page, gateway: MadeUpGateway) -> None:
    gateway.credits[KEY] = 0.25
    gateway.refusals.append(Refusal(406, "not enough credits: 1 needed, 0.25 left"))
    begin(page)
    failure = page.get_by_role("alert")
    expect(failure).to_contain_text("Not enough credits: 1 needed, 0.25 left.")
    expect(failure).to_contain_text("Fewer steps")
    expect(page.locator("#credits")).to_have_text("0.25 credits")


def test_who_is_too_fast_can_try_again_when_the_gateway_has_time(page: Page, gateway: MadeUpGateway) -> None:
    now = int(time.time())
    page.clock.set_fixed_time(now)
    gateway.refusals.append(Refusal(429, "the server is full: busy", {"retry-after": "2"}))
    begin(page)
    button = page.get_by_role("alert").get_by_role("button")
    expect(button).to_have_text("Try again in 2 s")
    page.clock.set_fixed_time(now + 1.9)
    expect(button).to_have_text("Try again in 1 s")
    expect(button).to_be_disabled()
    page.clock.set_fixed_time(now + 2)
    expect(button).to_have_text("Try again")
    button.click()
    done(page).wait_for()
    assert len(gateway.asked) == 2


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (Refusal(503, "the gateway is stopping", {"retry-after": "5"}), ["Not ready", "The gateway is stopping."]),
        (Refusal(413, "body: more than 8388608 bytes"), ["The gateway refused this", "more than 8388608 bytes."]),
        (Refusal(409, "cancelled: somebody cancelled the generation"), ["Cancelled: somebody cancelled"]),
        (
            Refusal(500, "internal error", {"x-request-id": "abc123"}),
            ["The server failed", "The operator finds it in the log as abc123."],
        ),
    ],
)
def test_explains_what_went_wrong(page: Page, gateway: MadeUpGateway, refusal: Refusal, told: list[str]) -> None:
    gateway.refusals.append(refusal)
    begin(page)
    for text in told:
        expect(page.get_by_role("alert")).to_contain_text(text)


def test_a_gateway_that_does_not_answer_is_told_and_found_again(page: Page, gateway: MadeUpGateway) -> None:
    page.route("**/v1/parameters", lambda route: route.abort())
    page.reload()
    failure = page.get_by_role("alert")
    expect(failure).to_contain_text("The gateway does not answer.")
    page.unroute("**/v1/parameters")
    failure.get_by_role("button", name="Try again").click()
    expect(page.get_by_label("Prompt", exact=True)).to_be_visible()
    expect(failure).to_be_hidden()
