"""The playground draws: progress, previews, pictures, and a stop at any time."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from made_up_gateway import KEY, MadeUpGateway, Refusal, picture_file
from PIL import Image
from playwright.sync_api import Locator, Page, expect

PROMPT = "misty hills, „weiches“ Licht 🌄"


def begin(page: Page, **fields: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    for label, value in fields.items():
        page.get_by_label(label, exact=True).fill(value)
    page.keyboard.press("Control+Enter")


def size(image: Locator) -> list[int]:
    """In pixels of the picture, once it is there: a moment after its element."""
    return list(image.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"))


def captions(page: Page) -> list[str]:
    return page.locator("#frames .caption button").all_inner_texts()


def downloaded(page: Page, folder: Path) -> bytes:
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download").click()
    file = folder / waiting.value.suggested_filename
    waiting.value.save_as(file)
    return file.read_bytes()


def finish(page: Page) -> None:
    page.locator("#stage[data-state=done]").wait_for()
    expect(page.get_by_role("button", name="Generate")).to_have_attribute("aria-disabled", "false")


def test_shows_progress_and_previews_while_it_draws_and_then_the_picture(page: Page, gateway: MadeUpGateway) -> None:
    gateway.hold_at = 10
    begin(page, Seed="7")
    expect(page.locator("#status")).to_have_text("Step 10 of 20, about 0 s left")
    assert page.get_by_role("progressbar").evaluate("bar => bar.value") == 0.5
    assert page.title() == "50 % · Tiny-SD"
    preview = page.locator("#frames img.preview")
    assert size(preview) == [64, 64]

    gateway.go_on()
    finish(page)
    picture = page.locator("#frames img")
    assert size(picture) == [512, 512]
    assert picture.get_attribute("alt") == PROMPT
    expect(page.locator("#status")).to_have_text("0.0 s · 1 credit")
    expect(page.locator("#credits")).to_have_text("999 credits")
    expect(page.get_by_role("progressbar")).to_be_hidden()
    assert page.title() == "Tiny-SD"


def test_sends_what_the_form_says(page: Page, gateway: MadeUpGateway) -> None:
    page.get_by_label("Negative prompt").fill("fog")
    page.get_by_role("radiogroup", name="Width").get_by_label("768").check()
    page.get_by_role("radiogroup", name="Pictures").get_by_label("2").check()
    page.get_by_label("Steps", exact=True).fill("30")
    page.get_by_text("Advanced").click()
    page.get_by_label("Scheduler").select_option("DDIM")
    page.get_by_label("Guidance", exact=True).fill("3.5")
    page.get_by_role("radiogroup", name="File format").get_by_label("png").check()
    page.get_by_label("Steps between previews", exact=True).fill("0")
    expect(page.get_by_role("button", name="Generate")).to_contain_text("4.5 credits")
    begin(page, Seed="7")
    finish(page)
    assert gateway.asked == [
        {
            "prompt": PROMPT,
            "negative_prompt": "fog",
            "scheduler": "DDIM",
            "num_inference_steps": 30,
            "guidance_scale": 3.5,
            "samples": 2,
            "seed": 7,
            "img_width": 768,
            "img_height": 512,
            "image_format": "png",
            "preview_every": 0,
        }
    ]
    expect(page.locator("#status")).to_have_text("0.0 s · 4.5 credits")


def test_a_slider_and_its_number_follow_each_other(page: Page) -> None:
    number, slider = page.get_by_label("Steps", exact=True), page.get_by_label("Steps, slider")
    number.fill("60")
    assert slider.input_value() == "60"
    slider.fill("45")
    assert number.input_value() == "45"


def test_shows_every_picture_with_its_seed_and_its_preview(page: Page, gateway: MadeUpGateway) -> None:
    page.get_by_role("radiogroup", name="Pictures").get_by_label("3").check()
    gateway.hold_at = 5
    begin(page, Seed="40")
    expect(page.locator("#frames img.preview")).to_have_count(3)
    gateway.go_on()
    finish(page)
    assert [text.split()[-1] for text in captions(page)] == ["40", "41", "42"]
    page.get_by_title("Use seed 42").click()
    expect(page.get_by_label("Seed")).to_have_value("42")


def test_a_downloaded_picture_is_the_file_that_the_gateway_sent(page: Page, tmp_path: Path) -> None:
    begin(page, Seed="7")
    finish(page)
    assert downloaded(page, tmp_path) == picture_file(prompt=PROMPT, seed=7)
    assert [file.name for file in tmp_path.iterdir()] == ["misty-hills-weiches-licht-7.jpg"]


def test_seeds_stay_exact_beyond_what_javascript_numbers_hold(page: Page, gateway: MadeUpGateway) -> None:
    seed = 2**63 - 5
    page.get_by_role("radiogroup", name="Pictures").get_by_label("2").check()
    begin(page, Seed=str(seed))
    finish(page)
    assert gateway.asked[0]["seed"] == seed
    assert [text.split()[-1] for text in captions(page)] == [str(seed), str(seed + 1)]
    expect(page.locator("#thumbnails img")).to_have_count(1)  # it is kept now
    page.reload()
    expect(page.get_by_label("Seed")).to_have_value(str(seed))
    page.locator("#thumbnails .open").click()
    expect(page.get_by_label("Seed")).to_have_value(str(seed))


def test_random_and_reuse_set_the_seed(page: Page, gateway: MadeUpGateway) -> None:
    reuse = page.get_by_role("button", name="Reuse")
    expect(reuse).to_be_disabled()
    begin(page)
    finish(page)
    assert gateway.asked[0]["seed"] == -1
    reuse.click()
    drawn = captions(page)[0].split()[-1]
    expect(page.get_by_label("Seed")).to_have_value(drawn)
    page.get_by_role("button", name="Random").click()
    expect(page.get_by_label("Seed")).to_have_value("")


@pytest.mark.parametrize("way", ["key", "button"])
def test_cancel_closes_the_connection(page: Page, gateway: MadeUpGateway, way: str) -> None:
    gateway.hold_at = 10
    begin(page)
    page.get_by_text("Step 10 of 20").wait_for()
    assert not gateway.ended
    if way == "key":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Cancel").click()
    assert gateway.wait_for_end() == "left"
    expect(page.locator("#status")).to_have_text("Cancelled. Nothing was charged.")
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    expect(page.get_by_role("button", name="Generate")).to_be_focused()
    expect(page.locator("#credits")).to_have_text("1,000 credits")


def test_leaving_the_page_closes_the_connection(page: Page, gateway: MadeUpGateway) -> None:
    gateway.hold_at = 10
    begin(page)
    page.get_by_text("Step 10 of 20").wait_for()
    page.close()
    assert gateway.wait_for_end() == "left"


def test_what_was_shown_before_comes_back_after_a_cancel(page: Page, gateway: MadeUpGateway) -> None:
    begin(page, Seed="7")
    finish(page)
    gateway.hold_at = 10
    page.keyboard.press("Control+Enter")
    page.get_by_text("Step 10 of 20").wait_for()
    page.keyboard.press("Escape")
    expect(page.get_by_title("Use seed 7")).to_be_visible()


def test_draws_one_generation_at_a_time(page: Page, gateway: MadeUpGateway) -> None:
    gateway.hold_at = 10
    begin(page)
    page.get_by_text("Step 10 of 20").wait_for()
    page.keyboard.press("Control+Enter")
    page.locator("#generate").click(force=True)
    gateway.go_on()
    finish(page)
    assert len(gateway.asked) == 1


def test_a_lost_connection_is_told_and_can_be_tried_again(page: Page, gateway: MadeUpGateway) -> None:
    gateway.break_at = 10
    begin(page)
    failure = page.get_by_role("alert")
    expect(failure).to_contain_text("No connection")
    assert gateway.wait_for_end() == "broken"
    gateway.break_at = None
    failure.get_by_role("button", name="Try again").click()
    finish(page)
    expect(failure).to_be_hidden()


def test_an_error_in_the_stream_is_told(page: Page, gateway: MadeUpGateway) -> None:
    gateway.fail_at = (10, Refusal(504, "overdue: the pictures were not finished in time"))
    begin(page)
    expect(page.get_by_role("alert")).to_contain_text("It took too long")
    expect(page.locator("#stage")).to_have_attribute("data-state", "idle")


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_reads_events_however_they_are_cut(page: Page, gateway: MadeUpGateway, tmp_path: Path, line_end: str) -> None:
    gateway.line_end, gateway.piece = line_end, 97
    begin(page, Seed="7")
    finish(page)
    assert downloaded(page, tmp_path) == picture_file(prompt=PROMPT, seed=7)


def test_screen_readers_are_told_little_while_it_draws(page: Page, gateway: MadeUpGateway) -> None:
    page.evaluate(
        """() => {
            const announcer = document.getElementById("announcer");
            window.told = [];
            new MutationObserver(() => told.push(announcer.textContent)).observe(announcer, { childList: true });
        }"""
    )
    now = int(time.time())
    page.clock.set_fixed_time(now)
    gateway.hold_at = 50
    begin(page, Steps="100")
    page.get_by_text("Step 50 of 100").wait_for()
    page.clock.set_fixed_time(now + 9)
    gateway.go_on()
    finish(page)
    first, midway, last = page.evaluate("told")
    assert first == "Drawing. Escape cancels."
    assert midway.startswith("Step 51 of 100")
    assert last.startswith("1 picture in ")


def test_a_picture_opens_in_full_and_escape_closes_it(page: Page, gateway: MadeUpGateway) -> None:
    begin(page, Seed="7")
    finish(page)
    page.get_by_role("button", name=PROMPT).first.click()
    viewer = page.get_by_role("dialog", name="Picture in full")
    expect(viewer.get_by_role("img")).to_be_visible()
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()


def test_the_noise_has_the_shape_of_the_pictures_to_come(page: Page) -> None:
    page.get_by_role("radiogroup", name="Height").get_by_label("1024").check()
    page.get_by_role("radiogroup", name="Pictures").get_by_label("4").check()
    noise = page.locator("#frames canvas")
    expect(noise).to_have_count(4)
    assert noise.first.evaluate("canvas => [canvas.width, canvas.height]") == [64, 128]


def test_asks_for_nothing_from_elsewhere(page: Page, gateway: MadeUpGateway) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    begin(page, Seed="7")
    finish(page)
    own = (gateway.url, f"blob:{gateway.url}", "data:")
    assert [url for url in asked if not url.startswith(own)] == []
    assert not [url for url in asked if KEY in url]


def test_pictures_of_the_made_up_gateway_are_pictures(gateway: MadeUpGateway) -> None:
    """What the other tests rest on."""
    assert Image.open(io.BytesIO(picture_file(prompt=PROMPT, seed=7, img_width=768))).size == (768, 512)
