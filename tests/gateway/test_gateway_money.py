"""Prices and amounts, to the last thousandth."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_sd_client.parameters import parse
from tiny_sd_gateway import money


@pytest.mark.parametrize(
    ("asked", "credits", "milli"),
    [
        ({}, "1", 1000),
        ({"num_inference_steps": 100}, "1", 5000),
        ({"samples": 4}, "1", 4000),
        ({"img_width": 1024, "img_height": 1024}, "1", 4000),
        ({"img_width": 768}, "1", 1500),
        ({"num_inference_steps": 21}, "0.001", 2),  # 1.05 thousandths
        ({"num_inference_steps": 33, "img_width": 768, "img_height": 768, "samples": 3}, "0.0123", 137),  # 136.99875
        ({}, "0.0001", 1),
        ({"num_inference_steps": 100, "img_width": 1024, "img_height": 1024, "samples": 4}, "0", 0),
    ],
)
def test_the_price_is_by_steps_pixels_and_samples_and_rounded_up(
    asked: dict[str, int], credits: str, milli: int
) -> None:
    assert money.price(parse({"prompt": "a cat", **asked}), Decimal(credits)) == milli


def test_a_price_that_no_float_holds_is_exact() -> None:
    parameters = parse({"prompt": "a cat", "num_inference_steps": 23})
    assert money.price(parameters, Decimal("999999.999999999999999999")) == 1_150_000_000
    assert money.price(parameters, Decimal("1000000.000000000000000001")) == 1_150_000_001


@pytest.mark.parametrize(
    ("milli", "text"),
    [(0, "0"), (1, "0.001"), (12_500, "12.5"), (-3000, "-3"), (-1, "-0.001"), (10**18 + 10, "1000000000000000.01")],
)
def test_amounts_are_shown_as_decimal_credits(milli: int, text: str) -> None:
    assert money.shown(milli) == text


@given(st.integers(1 - 10**15, 10**15 - 1))
def test_what_is_shown_is_read_back(milli: int) -> None:
    assert money.parse_credits(money.shown(milli)) == milli


@pytest.mark.parametrize("text", ["", "ten", "1.0001", "1.", "NaN", "1e3", "1000000000000", "0x10", "٣"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="allowed: credits below"):
        money.parse_credits(text)
