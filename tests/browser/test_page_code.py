"""What the playground copies as curl and as Python, which is run here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_gateway import KEY, MadeUpGateway
from playwright.sync_api import Page, expect

from tiny_sd_client.pictures import read_parameters

PROMPT = """a 'quoted' "prompt" with $HOME, `date`, \\ and
a second line, „weich“ 🌄"""


def draw(page: Page, samples: int) -> None:
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("Steps", exact=True).fill("25")
    page.get_by_role("radiogroup", name="Pictures").get_by_label(str(samples)).check()
    page.keyboard.press("Control+Enter")
    page.locator("#stage[data-state=done]").wait_for()


def copied(page: Page, language: str) -> str:
    page.evaluate("window.setTimeout = () => 0")  # or the button says it for a moment only
    page.get_by_role("button", name=language).click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    return str(page.evaluate("navigator.clipboard.readText()"))


def run(language: str, code: str, folder: Path) -> None:
    command = ["bash", "-c", code] if language == "curl" else [sys.executable, "-c", code]
    subprocess.run(command, cwd=folder, env={**os.environ, "TINY_SD_KEY": KEY}, check=True, timeout=60)


@pytest.mark.parametrize("language", ["curl", "Python"])
@pytest.mark.parametrize("samples", [1, 2])
def test_the_code_makes_the_pictures_that_are_shown(page: Page, tmp_path: Path, language: str, samples: int) -> None:
    draw(page, samples)
    seeds = [int(text.split()[-1]) for text in page.locator("#frames .caption button").all_inner_texts()]
    code = copied(page, language)
    assert KEY not in code
    assert "TINY_SD_KEY" in code
    run(language, code, tmp_path)
    made = [read_parameters(file.read_bytes()) for file in sorted(tmp_path.iterdir())]
    assert [parameters["seed"] for parameters in made] == seeds
    assert {(parameters["prompt"], parameters["num_inference_steps"]) for parameters in made} == {(PROMPT, 25)}


def test_the_code_says_only_what_is_not_usual(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("misty hills")
    code = copied(page, "curl")
    assert "num_inference_steps" not in code
    assert "seed" not in code


def test_the_code_is_shown_where_the_browser_lets_nobody_copy(page: Page, gateway: MadeUpGateway) -> None:
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.reload()
    page.get_by_label("Prompt", exact=True).fill("misty hills")
    page.get_by_role("button", name="Python").click()
    code = page.get_by_role("dialog").get_by_role("textbox", name="As Python")
    expect(code).to_be_focused()
    assert "requests.post" in code.input_value()
    assert page.evaluate("getSelection().toString()") == code.input_value()
    page.keyboard.press("Escape")
    expect(code).to_be_hidden()


def test_the_url_is_that_of_the_gateway(page: Page, gateway: MadeUpGateway) -> None:
    page.get_by_label("Prompt", exact=True).fill("misty hills")
    assert f"{gateway.url}/v1/tinysd1.5-txt2img" in copied(page, "Python")
