"""The playground brings parameters back: from picture files, and from the history that survives a reload."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from made_up_gateway import MadeUpGateway, picture_file
from PIL import Image
from playwright.sync_api import Locator, Page, expect

MADE_WITH = {
    "prompt": "a lighthouse at „dusk“",
    "negative_prompt": "fog",
    "scheduler": "DDIM",
    "num_inference_steps": 33,
    "guidance_scale": 4.5,
    "seed": 2**60 + 1,
    "img_width": 768,
}


def form_says(page: Page, **expected: object) -> None:
    for label, name in {
        "Prompt": "prompt",
        "Negative prompt": "negative_prompt",
        "Scheduler": "scheduler",
        "Steps": "num_inference_steps",
        "Guidance": "guidance_scale",
        "Seed": "seed",
    }.items():
        if name in expected:
            expect(page.get_by_label(label, exact=True)).to_have_value(str(expected[name]))
    if "img_width" in expected:
        width = page.get_by_role("radiogroup", name="Width").get_by_label(str(expected["img_width"]))
        expect(width).to_be_checked()


def choose(page: Page, name: str, data: bytes) -> None:
    with page.expect_file_chooser() as waiting:
        page.get_by_role("button", name="Restore from a picture").click()
    waiting.value.set_files([{"name": name, "mimeType": "image/jpeg", "buffer": data}])


def drag(page: Page, *events: str, data: bytes = b"") -> None:
    """Drag a picture file over the page, as far as ``events`` go."""
    page.evaluate(
        """([events, text]) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
            transfer.items.add(new File([bytes], "dropped.jpg", { type: "image/jpeg" }));
            for (const type of events) {
                const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
                document.getElementById("stage").dispatchEvent(new DragEvent(type, options));
            }
        }""",
        [list(events), base64.b64encode(data).decode()],
    )


def draw(page: Page, prompt: str, seed: int) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Seed").fill(str(seed))
    page.keyboard.press("Control+Enter")
    page.get_by_title(f"Use seed {seed}").wait_for()
    page.get_by_role("button", name="Cancel").wait_for(state="hidden")
    # In the history once it is kept, which is a moment after the picture.
    expect(page.locator("#thumbnails").get_by_alt_text(prompt)).to_have_count(1)


def thumbnails(page: Page) -> Locator:
    return page.locator("#thumbnails img")


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_a_chosen_picture_restores_its_parameters(page: Page, image_format: str) -> None:
    choose(page, "lighthouse", picture_file(**MADE_WITH, image_format=image_format))
    form_says(page, **MADE_WITH)
    page.get_by_text("Advanced").click()
    expect(page.get_by_role("radiogroup", name="File format").get_by_label(image_format)).to_be_checked()
    expect(page.locator("#frames img")).to_have_attribute("alt", MADE_WITH["prompt"])
    expect(page.locator("#status")).to_have_text("lighthouse")


def test_a_dropped_picture_restores_its_parameters(page: Page) -> None:
    overlay = page.get_by_text("Drop the picture to restore its parameters")
    drag(page, "dragenter", "dragover")
    expect(overlay).to_be_visible()
    drag(page, "dragleave")
    expect(overlay).to_be_hidden()
    drag(page, "dragenter", "dragover", "drop", data=picture_file(**MADE_WITH))
    expect(overlay).to_be_hidden()
    form_says(page, **MADE_WITH)


def test_a_restored_picture_draws_the_same_one_again(page: Page, gateway: MadeUpGateway) -> None:
    choose(page, "lighthouse.jpg", picture_file(**MADE_WITH))
    form_says(page, **MADE_WITH)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#credits")).to_have_text("997.525 credits")
    assert {name: gateway.asked[0][name] for name in MADE_WITH} == MADE_WITH


def test_a_picture_may_be_restored_while_another_is_drawn(page: Page, gateway: MadeUpGateway) -> None:
    gateway.hold_at = 10
    page.get_by_label("Prompt", exact=True).fill("misty hills")
    page.keyboard.press("Control+Enter")
    page.get_by_text("Step 10 of 20").wait_for()
    choose(page, "lighthouse.jpg", picture_file(**MADE_WITH))
    form_says(page, **MADE_WITH)
    gateway.go_on()
    expect(page.locator("#frames .picture img")).to_have_attribute("alt", "misty hills")
    assert gateway.wait_for_end() == "done"


def test_a_picture_from_elsewhere_is_refused_and_leaves_the_form_alone(page: Page) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    page.get_by_label("Prompt", exact=True).fill("misty hills")
    choose(page, "holiday.jpg", file.getvalue())
    failure = page.get_by_role("alert")
    expect(failure).to_contain_text("Nothing to restore from holiday.jpg")
    expect(failure).to_contain_text("Holds no generation parameters.")
    form_says(page, prompt="misty hills")


def test_a_size_that_is_not_offered_is_told_beside_its_field(page: Page, gateway: MadeUpGateway) -> None:
    width = next(definition for definition in gateway.definitions if definition["name"] == "img_width")
    width["enum"] = [512]
    page.reload()
    choose(page, "lighthouse.jpg", picture_file(**MADE_WITH))
    form_says(page, prompt=MADE_WITH["prompt"], img_width=512)
    expect(page.get_by_text("768 is not to be had here.")).to_be_visible()


def test_the_history_survives_a_reload_and_restores_parameters_and_pictures(page: Page) -> None:
    draw(page, "a lighthouse", 7)
    page.get_by_role("radiogroup", name="Pictures").get_by_label("2").check()
    draw(page, "misty hills", 8)
    page.reload()
    expect(thumbnails(page)).to_have_count(2)
    assert [image.get_attribute("alt") for image in thumbnails(page).all()] == ["misty hills", "a lighthouse"]
    assert thumbnails(page).first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 192

    page.get_by_role("button", name="a lighthouse", exact=True).click()
    form_says(page, prompt="a lighthouse", seed=7)
    expect(page.locator("#frames img")).to_have_count(1)
    page.get_by_role("button", name="misty hills", exact=False).first.click()
    form_says(page, prompt="misty hills", seed=8)
    expect(page.locator("#frames img")).to_have_count(2)
    picture = page.locator("#frames img").first
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 512


def test_single_entries_of_the_history_can_be_removed(page: Page) -> None:
    draw(page, "a lighthouse", 7)
    draw(page, "misty hills", 8)
    page.get_by_role("button", name="Remove: a lighthouse").click()
    expect(thumbnails(page)).to_have_count(1)
    page.reload()
    expect(thumbnails(page)).to_have_attribute("alt", "misty hills")


def test_the_history_is_cleared_by_the_second_press(page: Page) -> None:
    draw(page, "a lighthouse", 7)
    page.get_by_role("button", name="Clear").click()
    expect(thumbnails(page)).to_have_count(1)
    page.get_by_role("button", name="Really clear all?").click()
    expect(page.get_by_text("What you draw is kept in this browser.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("What you draw is kept in this browser.")).to_be_visible()


def test_the_history_lets_go_of_the_oldest(page: Page) -> None:
    png = io.BytesIO()
    Image.new("RGB", (2, 2)).save(png, "PNG")
    kept = page.evaluate(
        """async (text) => {
            const { History } = await import("/history.js");
            const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
            const history = await History.open();
            for (let seed = 1; seed <= 123; seed++) {
                const pictures = [{ blob: new Blob([bytes], { type: "image/png" }), seed }];
                await history.add({ pictures, parameters: { prompt: `picture ${seed}` } });
            }
            return [history, await History.open()].map(({ entries }) => entries.map((entry) => entry.pictures[0].seed));
        }""",
        base64.b64encode(png.getvalue()).decode(),
    )
    newest_first = list(range(123, 3, -1))
    assert kept == [newest_first, newest_first]


def test_what_is_added_while_something_is_removed_is_kept(page: Page) -> None:
    png = io.BytesIO()
    Image.new("RGB", (2, 2)).save(png, "PNG")
    kept = page.evaluate(
        """async (text) => {
            const { History } = await import("/history.js");
            const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
            const result = (seed) => ({ pictures: [{ blob: new Blob([bytes], { type: "image/png" }), seed }] });
            const history = await History.open();
            await history.add(result(1));
            await Promise.all([
                history.add(result(2)), history.remove(history.entries[0].id), history.add(result(3))
            ]);
            return [history, await History.open()].map(({ entries }) => entries.map((entry) => entry.pictures[0].seed));
        }""",
        base64.b64encode(png.getvalue()).decode(),
    )
    assert [sorted(seeds) for seeds in kept] == [[2, 3], [2, 3]]


def test_works_without_a_database_in_the_browser(page: Page) -> None:
    page.add_init_script("Object.defineProperty(window, 'indexedDB', { value: undefined })")
    page.reload()
    draw(page, "a lighthouse", 7)
    expect(thumbnails(page)).to_have_count(1)


def test_what_was_typed_survives_a_reload(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("a lighthouse")
    page.get_by_label("Steps", exact=True).fill("55")
    page.reload()
    form_says(page, prompt="a lighthouse", num_inference_steps=55)


def test_an_empty_form_is_not_reproached_after_a_reload(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("a")
    page.get_by_label("Prompt", exact=True).fill("")
    page.reload()
    expect(page.get_by_label("Prompt", exact=True)).to_be_visible()
    expect(page.locator(".problem:visible")).to_have_count(0)


def test_a_parameter_that_the_page_has_never_heard_of_gets_a_field(page: Page, gateway: MadeUpGateway) -> None:
    gateway.definitions += [
        {"name": "clip_skip", "type": "integer", "minimum": 1, "maximum": 12, "default": 1, "description": "Layers."},
        {"name": "tiled", "type": "boolean", "default": False, "description": "Whether it repeats."},
    ]
    page.reload()
    page.get_by_text("Advanced").click()
    page.get_by_label("Clip skip", exact=True).fill("3")
    page.get_by_label("Tiled").check()
    page.get_by_label("Prompt", exact=True).fill("a lighthouse")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("Unknown parameter")).to_be_visible()  # to this gateway, which only promised it
    assert (gateway.asked[0]["clip_skip"], gateway.asked[0]["tiled"]) == (3, True)


def test_the_files_of_the_page_are_all_used(gateway: MadeUpGateway, page: Page) -> None:
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(request.url.removeprefix(f"{gateway.url}/")))
    page.reload()
    page.get_by_label("Prompt", exact=True).wait_for()
    folder = Path(__file__).parents[2] / "gateway" / "tiny_sd_gateway" / "page"
    assert {file.name for file in folder.iterdir()} - {"index.html"} <= asked
