"""Our options beside Locust's own: on its command line, in its web page, or as TINY_SD_LOAD_… in the environment."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import Any

from load_tests import mix
from load_tests.calls import GATEWAY, TRANSPORTS
from load_tests.figures import Slo
from load_tests.mix import Mix

PREFIX = "TINY_SD_LOAD_"
API_KEY = f"{PREFIX}API_KEY"
SHAPES = ("none", "step", "spike", "soak")
_TRITON = ",".join(name for name in TRANSPORTS if name not in GATEWAY)


@dataclass(frozen=True)
class Settings:
    """A test, as its options describe it.

    ``source_rate``: planned arrivals per second of each user, 0 for the closed loop; ``think_seconds``: mean wait of a
    user of the closed loop between an answer and the next request; ``timeout``: seconds until a request counts as lost.
    """

    mix: Mix
    seed: int
    source_rate: float
    think_seconds: float
    slo: Slo
    timeout: float
    grpc_url: str
    http_url: str
    gateway_url: str


def add_options(parser: Any) -> None:
    """Add them to Locust's ``parser``. Those that are fixed with the start of Locust are not in the web page."""

    def add(name: str, **arguments: Any) -> None:
        parser.add_argument(f"--{name}", env_var=PREFIX + name.upper().replace("-", "_"), **arguments)

    add(
        "transport",
        default=_TRITON,
        metavar="<names>",
        include_in_web_ui=False,
        help=f"Transports, separated by commas: {', '.join(TRANSPORTS)}; each is a kind of users. Default: {_TRITON}",
    )
    add(
        "rate",
        type=float,
        default=0.0,
        metavar="<number>",
        help="Open loop: planned arrivals per second, of all --users together. 0: closed loop",
    )
    add(
        "think-seconds",
        type=float,
        default=1.0,
        metavar="<number>",
        help="Closed loop: mean wait between an answer and the user's next request",
    )
    add("mix", default=mix.USUAL, metavar="<weights>", help=f"Kinds of requests: {', '.join(mix.KINDS)}")
    add("sizes", default="512,768,1024", metavar="<pixels>", help="Widths and heights that the server offers")
    add("seed", type=int, default=0, metavar="<int>", help="Of everything that is drawn")
    add("slo-seconds", type=float, default=30.0, metavar="<number>", help="Time within which pictures must come")
    add("slo-share", type=float, default=0.95, metavar="<share>", help="Of all requests, how many must keep it")
    add(
        "timeout",
        type=float,
        default=300.0,
        metavar="<number>",
        help="Seconds after which a request without an answer is lost; the end of a test waits as long",
    )
    add("grpc-url", default="grpc://localhost:8001", metavar="<URL>", help="Triton: grpc:// or grpcs://")
    add("http-url", default="http://localhost:8000", metavar="<URL>", help="Triton: http:// or https://")
    add(
        "gateway-url",
        default="http://localhost:8080",
        metavar="<URL>",
        help=f"The REST gateway; its key comes from {API_KEY} alone",
    )
    add("shape", default="none", choices=SHAPES, include_in_web_ui=False, help="How --users vary over --run-time")
    add(
        "report",
        default="output/load-test",
        metavar="<folder>",
        include_in_web_ui=False,
        help="Where report.html, slo.csv and requests.csv go",
    )


def read_settings(options: argparse.Namespace) -> Settings:
    """The settings in ``options``. Raises ValueError, which names the option and says what is allowed."""
    for name in ("rate", "think_seconds", "timeout"):
        value = getattr(options, name)
        least = "above 0" if name == "timeout" else "of at least 0"
        if not 0 <= value < float("inf") or (name == "timeout" and not value):
            raise ValueError(f"{name.replace('_', '-')}: got {value}; allowed: a number {least}")
    for name, schemes in {"grpc": ("grpc", "grpcs"), "http": ("http", "https"), "gateway": ("http", "https")}.items():
        url = getattr(options, f"{name}_url")
        if url.partition("://")[0] not in schemes or not url.partition("://")[2]:
            allowed = " or ".join(f"{scheme}://host:port" for scheme in schemes)
            raise ValueError(f"{name}-url: got {url!r}; allowed: {allowed}")
    return Settings(
        mix=Mix.parse(options.mix, options.sizes),
        seed=options.seed,
        # A worker is told neither how many users there are in all nor anything else that it could count them by.
        source_rate=getattr(options, "source_rate", 0.0),
        think_seconds=options.think_seconds,
        slo=Slo(options.slo_seconds, options.slo_share),
        timeout=options.timeout,
        grpc_url=options.grpc_url,
        http_url=options.http_url,
        gateway_url=options.gateway_url,
    )


def read_transports(options: argparse.Namespace) -> list[str]:
    """The names in --transport. Raises ValueError, also if one of them needs a key and there is none."""
    names = [name.strip() for name in options.transport.split(",")]
    if unknown := [name for name in names if name not in TRANSPORTS]:
        raise ValueError(f"transport: got {unknown[0]!r}; allowed: {', '.join(TRANSPORTS)}")
    if any(name in GATEWAY for name in names) and not os.environ.get(API_KEY):
        raise ValueError(f"transport: {' and '.join(GATEWAY)} need a key of the gateway in {API_KEY}")
    return names
