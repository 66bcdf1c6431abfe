"""Prices and balances: integers of thousandths of a credit ("milli-credits"), never floats.

The price of a generation is

    credits_per_picture · steps / 20 · width · height / 512² · samples

rounded up to the next thousandth, so that nothing but a price of 0 is free.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction

from tiny_sd_client.parameters import Parameters

MILLI = 1000
USUAL_STEPS = 20
USUAL_PIXELS = 512 * 512
MAX_CREDITS = 10**12
"""One entry grants less: thousands of them still fit 64 bits in milli-credits."""


def price(parameters: Parameters, credits_per_picture: Decimal) -> int:
    """What a generation costs in milli-credits; ``credits_per_picture``: one of 512 by 512 pixels and 20 steps."""
    steps = Fraction(parameters.num_inference_steps, USUAL_STEPS)
    pixels = Fraction(parameters.img_width * parameters.img_height, USUAL_PIXELS)
    return math.ceil(MILLI * Fraction(credits_per_picture) * steps * pixels * parameters.samples)


def shown(milli: int) -> str:
    """Milli-credits as decimal credits, exactly.

    >>> shown(12500), shown(1), shown(-3000)
    ('12.5', '0.001', '-3')
    """
    whole, thousandths = divmod(abs(milli), MILLI)
    decimals = f".{thousandths:03}".rstrip("0").rstrip(".")
    return f"{'-' if milli < 0 else ''}{whole}{decimals}"


def parse_credits(text: str) -> int:
    """Decimal credits as milli-credits. Raises ValueError for what is no number of at most three decimals."""
    parts = re.fullmatch(r"([+-]?)([0-9]{1,13})(?:\.([0-9]{1,3}))?", text)
    if parts is None or int(parts[2]) >= MAX_CREDITS:
        raise ValueError(f"got {text!r}; allowed: credits below {MAX_CREDITS}, with at most three decimals")
    milli = int(parts[2]) * MILLI + int(f"{parts[3] or '':0<3}")
    return -milli if parts[1] == "-" else milli
