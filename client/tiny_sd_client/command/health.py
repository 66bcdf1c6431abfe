"""``tiny-sd check`` and ``drain``: what containers and orchestrators ask."""

from __future__ import annotations

import argparse
import sys
import time

from tiny_sd_client import health
from tiny_sd_client.command.connection import connect
from tiny_sd_client.errors import DeadlineExceeded

_LOOK_S = 0.5
_QUIET_S = 2.0
"""So long nothing must be in flight: callers may still be on their way."""


def check(options: argparse.Namespace) -> int:
    """Find out whether the server can make pictures."""
    with connect(options, patience=0) as client:
        health.check(client, options.timeout, whole=options.whole)
    _say("healthy")
    return 0


def drain(options: argparse.Namespace) -> int:
    """Wait until nothing is in flight. Nobody is kept from sending more: that is the load balancer's part."""
    deadline = time.monotonic() + options.timeout
    quiet_since = None
    with connect(options) as client:
        while quiet_since is None or time.monotonic() - quiet_since < _QUIET_S:
            in_flight = len(client.jobs())
            if in_flight:
                quiet_since = None
            elif quiet_since is None:
                quiet_since = time.monotonic()
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"{in_flight} generations are in flight after {options.timeout:g} s")
            time.sleep(_LOOK_S)
    _say("drained")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
