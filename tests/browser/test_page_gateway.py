"""The playground in front of the real gateway, its database and its ledger; only Triton is made up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import requests
from fake_triton import FakeTriton
from made_up_gateway import CONTENT_SECURITY_POLICY, MadeUpGateway, picture_file
from playwright.sync_api import BrowserContext, Page, expect
from running_gateway import RunningGateway, wait_until
from visits import opened

from tiny_sd_client import Generation, Progress, Stage, Timings
from tiny_sd_client.parameters import parse
from tiny_sd_gateway.database import Database

T = TypeVar("T")


class DrawingTriton(FakeTriton):
    """Draws pictures that browsers can show, and waits half way for those whose prompt is ``held``."""

    async def stream(
        self,
        prompt: str,
        *,
        preview_every: int = 0,
        timeout: float | None = None,
        job_id: str | None = None,
        **parameters: Any,
    ) -> AsyncGenerator[Progress | Generation, None]:
        wanted = parse({**parameters, "prompt": prompt}, sizes=None)
        files = tuple(picture_file(**{**wanted.picture(), "seed": wanted.seed + i}) for i in range(wanted.samples))
        seeds = tuple(wanted.seed + i for i in range(wanted.samples))
        steps = wanted.num_inference_steps
        try:
            for step in range(steps + 1):
                due = preview_every and step and step % preview_every == 0
                yield Progress(job_id or "", Stage.DENOISING, step, steps, 0.5, 0.5, files if due else ())
                while step == steps // 2 and prompt in self.held:
                    await asyncio.sleep(0.01)
            yield Generation(job_id or "", files, seeds, wanted, Timings(1.25, 1.25))
        except (GeneratorExit, asyncio.CancelledError):
            self.broken_off.append(job_id)
            raise


class Gateway(RunningGateway):
    """Looks into its database from another thread: in this one runs Playwright's event loop."""

    def in_database(self, do: Callable[[Database], Awaitable[T]]) -> T:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(super().in_database, do).result()


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RunningGateway]:
    with Gateway(f"sqlite:///{tmp_path / 'gateway.db'}", DrawingTriton(), lease_s=300) as real:
        yield real


@pytest.fixture
def page(contexts: Callable[..., BrowserContext], real: RunningGateway) -> Page:
    return opened(contexts(), real.url, real.key)


def draw(page: Page, prompt: str = "misty hills") -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.keyboard.press("Control+Enter")


def done(page: Page) -> None:
    page.locator("#stage[data-state=done]").wait_for()
    page.get_by_role("button", name="Cancel").wait_for(state="hidden")


def test_the_made_up_gateway_is_like_the_real_one(real: RunningGateway, gateway: MadeUpGateway) -> None:
    """The tests of the page rest on this."""
    described, made_up = (requests.get(f"{url}/v1/parameters", timeout=60).json() for url in (real.url, gateway.url))
    relevant = ("name", "type", "description", "default", "enum", "minimum", "maximum", "maxLength", "required")
    for answer in (described, made_up):
        answer["parameters"] = [
            {name: parameter[name] for name in relevant if name in parameter} for parameter in answer["parameters"]
        ]
    assert made_up == described
    assert requests.get(real.url, timeout=60).headers["content-security-policy"] == CONTENT_SECURITY_POLICY


def test_draws_and_pays(page: Page, real: RunningGateway) -> None:
    real.triton.held.add("misty hills")
    draw(page)
    page.get_by_text("Step 10 of 20").wait_for()
    expect(page.locator("#frames img.preview")).to_be_visible()
    real.triton.let_go("misty hills")
    done(page)
    expect(page.locator("#status")).to_have_text("1.3 s · 1 credit")
    expect(page.locator("#credits")).to_have_text("99 credits")
    assert real.balance() == 99_000


def test_cancel_stops_triton_and_gives_the_credits_back(page: Page, real: RunningGateway) -> None:
    real.triton.held.add("misty hills")
    draw(page)
    page.get_by_text("Step 10 of 20").wait_for()
    assert real.balance() == 99_000
    page.keyboard.press("Escape")
    wait_until(lambda: real.balance() == 100_000)
    assert len(real.triton.broken_off) == 1
    expect(page.locator("#credits")).to_have_text("100 credits")


def test_what_only_the_gateway_checks_is_shown_beside_its_field(page: Page) -> None:
    draw(page, "misty\x07hills")
    field = page.get_by_label("Prompt", exact=True)
    expect(field).to_be_focused()
    expect(page.get_by_text("without control characters")).to_be_visible()
    expect(field).to_have_attribute("aria-invalid", "true")


def test_a_picture_restores_its_parameters(page: Page) -> None:
    data = picture_file(prompt="a lighthouse", seed=2**60 + 1, image_format="png")
    with page.expect_file_chooser() as waiting:
        page.get_by_role("button", name="Restore from a picture").click()
    waiting.value.set_files([{"name": "lighthouse.png", "mimeType": "image/png", "buffer": data}])
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a lighthouse")
    expect(page.get_by_label("Seed")).to_have_value(str(2**60 + 1))


def test_refusals_are_explained(page: Page, real: RunningGateway) -> None:
    failure = page.get_by_role("alert")
    page.clock.set_fixed_time(time.time())  # the wait that the page counts down does not end
    page.evaluate("key => { location.hash = `key=${key}` }", real.new_key(5, requests_per_minute=1))
    expect(page.locator("#credits")).to_have_text("5 credits")
    draw(page)
    done(page)
    draw(page)
    expect(failure).to_contain_text("Come back in a moment")
    expect(failure.get_by_role("button")).to_be_disabled()

    page.evaluate("key => { location.hash = `key=${key}` }", real.new_key(0.5))
    expect(page.locator("#credits")).to_have_text("0.5 credits")
    draw(page)
    expect(failure).to_contain_text("Not enough credits")

    page.evaluate("location.hash = 'key=tsd_wrong'")
    expect(page).to_have_url(f"{real.url}/")
    draw(page)
    expect(failure).to_contain_text("The gateway does not know this key")
