#!/usr/bin/env python
"""A short load test of everything on this machine: Triton, the gateway before it, and Locust against both.

Everything after `--` goes to Locust, after ours, so that it wins; for example: load_test.py -- --rate 2 --run-time 5m
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

import serve
from gateway import GatewayDied, gateway_environment
from local_server import LocalServer, ServeError
from local_server.checkpoint import VARIABLE, choose_checkpoint
from local_server.install import ROOT
from local_server.server import dying_with_parent

REPORT = ROOT / "output" / "load-test"
SIZES = "128,256,512"
"""What the servers offer, in pixels: small, so that two CPU cores get something done in half a minute."""
_SCRIPTS = Path(sys.executable).parent
_READY = re.compile(r"Playground: (\S+?)/?#key=(\S+)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Locust's exit code: 1 if the SLO was missed or something was lost; also after an error. 130 when interrupted."""
    options = parse_arguments(sys.argv[1:] if argv is None else argv)
    sys.path[:0] = [str(ROOT / "engine"), str(ROOT / "client")]
    os.environ.update(serve.QUIET)
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    try:
        return run(options, console)
    except (ServeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options, with everything after `--` as `extra_args`."""
    ours, extra = list(argv), []
    if "--" in ours:
        split = ours.index("--")
        ours, extra = ours[:split], ours[split + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="PATH", help=f"diffusers folder; else {VARIABLE}, else the built-in one")
    add("--out", type=Path, default=REPORT, metavar="DIR", help="where the reports go (default: output/load-test)")
    options = parser.parse_args(ours)
    options.extra_args = extra
    return options


def run(options: argparse.Namespace, console: Console) -> int:
    """Start both servers, load them, stop them. Returns Locust's exit code. Raises ServeError or OSError."""
    checkpoint = choose_checkpoint(options.checkpoint)
    server = LocalServer(env={VARIABLE: str(checkpoint), "TINY_SD_SIZES": SIZES})
    try:
        with console.status("starting Triton"):
            server.start()
        console.print(f"Triton serves {checkpoint}")
        with started_gateway(server.grpc_url) as (url, key):
            environment = locust_environment(server, url, key)
            return subprocess.run(
                locust_command(options.out, options.extra_args), env=environment, check=False
            ).returncode
    finally:
        server.stop()


def locust_command(out: Path, extra: Sequence[str]) -> list[str]:
    """An open loop over all transports for half a minute, unless ``extra`` says otherwise."""
    ours = {
        "--locustfile": ROOT / "load_tests" / "locustfile.py",
        "--transport": "grpc,stream,generate,infer,rest,queue",
        "--rate": "0.8",
        "--run-time": "30s",
        "--sizes": "128,256",
        "--slo-seconds": "60",
        "--timeout": "120",
        "--report": out,
        "--html": out / "locust.html",
        "--csv": out / "locust",
    }
    arguments = [str(text) for pair in ours.items() for text in pair]
    return [str(_SCRIPTS / "locust"), "--headless", "--only-summary", *arguments, *extra]


def locust_environment(server: LocalServer, gateway: str, key: str) -> dict[str, str]:
    """Where Locust finds the servers; ``gateway`` is a URL."""
    urls = {"GRPC": f"grpc://{server.grpc_url}", "HTTP": f"http://{server.http_url}", "GATEWAY": gateway}
    return {
        **os.environ,
        **{f"TINY_SD_LOAD_{name}_URL": url for name, url in urls.items()},
        "TINY_SD_LOAD_API_KEY": key,
    }


@contextmanager
def started_gateway(triton: str) -> Iterator[tuple[str, str]]:
    """URL and key of a gateway with a database of its own, before the Triton whose gRPC endpoint is ``triton``."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "DATABASE_URL": f"sqlite:///{folder}/gateway.db",
            "PORT": "0",
            "REQUESTS_PER_MINUTE": "1000000",
            "DEV_KEY_CREDITS": "1000000",
        }
        environment = gateway_environment({**os.environ, "TINY_SD_SIZES": SIZES}, triton)
        environment |= {f"TINY_SD_GATEWAY_{name}": value for name, value in settings.items()}
        log = Path(folder, "log")
        with log.open("w") as stderr:
            process = subprocess.Popen(
                dying_with_parent([str(_SCRIPTS / "tiny-sd-gateway"), "run"]),
                env=environment,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        try:
            assert process.stdout
            ready = next(filter(None, map(_READY.fullmatch, process.stdout)), None)
            if ready is None:
                raise GatewayDied(f"the gateway did not start:\n{log.read_text()}")
            yield ready[1], ready[2]
        finally:
            process.terminate()
            process.communicate()


if __name__ == "__main__":
    sys.exit(main())
