#!/usr/bin/env python
"""Start Triton and the REST gateway in front of it; Ctrl-C stops both."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

import serve
from local_server import LocalServer, ServeError
from local_server.checkpoint import VARIABLE, choose_checkpoint
from local_server.install import ROOT
from local_server.server import dying_with_parent

_COMMAND = Path(sys.executable).with_name("tiny-sd-gateway")
_POLL_S = 0.2


class GatewayDied(ServeError):
    """The gateway stopped by itself."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM. The exit code: 0 after a clean stop, 1 after an error, 130 if cut short."""
    options = parse_arguments(argv)
    sys.path[:0] = [str(ROOT / "engine"), str(ROOT / "client")]
    os.environ.update(serve.QUIET)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    try:
        run(options, console)
    except (ServeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; the gateway's own settings come from the environment."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="The gateway's settings come from the environment: docs/configuration.md."
    )
    add = parser.add_argument
    add("--host", help="address of the gateway; 0.0.0.0 opens it to the network (default: 127.0.0.1)")
    add("--port", help="port of the gateway; 0 for any that is free (default: 8080)")
    add("--checkpoint", type=Path, metavar="PATH", help=f"diffusers folder to serve; else {VARIABLE}, else the default")
    return parser.parse_args(argv)


def run(options: argparse.Namespace, console: Console) -> None:
    """Run both until Ctrl-C; neither is left when this returns or raises.

    Raises ServeError if one of them cannot start or stops, or KeyboardInterrupt for a second Ctrl-C.
    """
    with console.status("checking the checkpoint"):
        checkpoint = choose_checkpoint(options.checkpoint)
    console.print(f"Checkpoint: {checkpoint}")
    # Only the gateway is to be reached from outside; it finds Triton wherever there are free ports.
    server = LocalServer(env={VARIABLE: str(checkpoint)})
    gateway: subprocess.Popen[bytes] | None = None
    try:
        serve.start(server, console, None)
        gateway = start_gateway(options, server.grpc_url)
        watch(server, gateway)
    except KeyboardInterrupt:
        console.print("Stopping; Ctrl-C again to stop at once.")
        if gateway:
            stop_gateway(gateway)
        server.stop()
        console.print("Stopped.")
    finally:
        if gateway:
            gateway.kill()
        server.kill()


def start_gateway(options: argparse.Namespace, triton: str) -> subprocess.Popen[bytes]:
    """Start the gateway in front of the Triton whose gRPC endpoint is ``triton``."""
    given = {"--host": options.host, "--port": options.port}
    arguments = [text for name, value in given.items() if value is not None for text in (name, value)]
    return subprocess.Popen(
        dying_with_parent([str(_COMMAND), "run", *arguments]),
        env=gateway_environment(os.environ, triton),
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches only us; we stop the gateway before Triton
    )


def gateway_environment(environment: Mapping[str, str], triton: str) -> dict[str, str]:
    """The environment of the gateway: it offers the sizes that Triton offers."""
    sizes = {"TINY_SD_GATEWAY_SIZES": environment["TINY_SD_SIZES"]} if environment.get("TINY_SD_SIZES") else {}
    return {**sizes, **environment, "TINY_SD_GATEWAY_TRITON_URL": f"grpc://{triton}"}


def watch(server: LocalServer, gateway: subprocess.Popen[bytes]) -> None:
    """Return never; raises ServeError as soon as one of them has stopped."""
    while True:
        server.check()
        if gateway.poll() is not None:
            raise GatewayDied(f"the gateway stopped (exit code {gateway.returncode})")
        time.sleep(_POLL_S)


def stop_gateway(gateway: subprocess.Popen[bytes]) -> None:
    """Let it finish what runs, which it limits by itself."""
    gateway.terminate()
    gateway.wait()


if __name__ == "__main__":
    sys.exit(main())
