#!/usr/bin/env python
"""Start a local Triton Inference Server on this repository's models, and stop it again with Ctrl-C.

Everything after `--` goes to tritonserver unchanged, for example: serve.py --free-ports -- --log-verbose=1
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from local_server import LocalServer, ModelProgress, OnLine, Ports, ServeError
from local_server.checkpoint import VARIABLE, choose_checkpoint
from local_server.install import ROOT

_POLL_S = 0.2
_CHECK_S = 60
"""A check's first step waits its turn among the generations in flight."""
_PAUSES_S = (2, 5, 15, 60)
"""Between one start that failed and the next."""
MODEL_REPOSITORY = ROOT / "model_repository"

# The libraries' progress bars and advice to developers would drown ours.
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM. The exit code: 0 after a clean stop, 1 after an error, 130 if cut short."""
    options = parse_arguments(sys.argv[1:] if argv is None else argv)
    # The checkpoint is checked by this checkout's engine, as it is served by it, installed or not.
    sys.path[:0] = [str(ROOT / "engine"), str(ROOT / "client")]
    os.environ.update(QUIET)
    # SIGTERM asks for the same clean stop as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    try:
        serve(options, console)
    except (ServeError, OSError) as error:  # OSError: a log that cannot be written, a binary that cannot run
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options, with everything after `--` as `extra_args`."""
    ours, extra = list(argv), []
    if "--" in ours:
        split = ours.index("--")
        ours, extra = ours[:split], ours[split + 1 :]
    options = _parser().parse_args(ours)
    if options.config:
        extra = [f"--model-config-name={options.config}", *extra]
    options.extra_args = extra
    return options


def serve(options: argparse.Namespace, console: Console) -> None:
    """Start a server as `options` say and watch it until Ctrl-C; the server is gone when this returns or raises.

    Raises ServeError, or KeyboardInterrupt for a second Ctrl-C.
    """
    server = make_server(options, console)
    on_line = console.print if options.verbose else None
    try:
        start(server, console, on_line)
        print_endpoints(server, console)
        if options.supervise:
            supervise(server, console, options.supervise, on_line)
        server.wait(on_line)
    except KeyboardInterrupt:
        console.print("Stopping; Ctrl-C again to stop at once.")
        server.stop()
        console.print("Stopped.")
    finally:
        server.kill()


def make_server(options: argparse.Namespace, console: Console) -> LocalServer:
    """The server that `options` describe, its checkpoint checked."""
    env = {}
    # Other people's models need no checkpoint of ours.
    if options.checkpoint or options.model_repository == MODEL_REPOSITORY:
        with console.status("checking the checkpoint"):
            checkpoint = choose_checkpoint(options.checkpoint)
        console.print(f"Checkpoint: {checkpoint}")
        env[VARIABLE] = str(checkpoint)
    return LocalServer(
        repository=options.model_repository,
        ports=None if options.free_ports else Ports(options.http_port, options.grpc_port, options.metrics_port),
        host=options.host,
        env=env,
        extra_args=options.extra_args,
        log_path=options.log,
        exit_timeout_s=options.exit_timeout,
        ready_timeout_s=options.ready_timeout,
    )


def start(server: LocalServer, console: Console, on_line: OnLine | None) -> None:
    """Start the server, with one line for each model that gets ready and, on a terminal, what is loading now."""
    loading: dict[str, None] = {}

    def on_progress(news: ModelProgress) -> None:
        if news.state == "loading":
            loading[news.model] = None
        else:
            loading.pop(news.model, None)
            console.print(f"  {news.model:<20} {news.state} after {news.seconds:.1f} s")
        status.update(f"loading {', '.join(loading)}" if loading else "starting")

    with console.status("starting Triton") as status:
        server.start(on_progress, on_line)


def supervise(server: LocalServer, console: Console, every_s: float, on_line: OnLine | None) -> NoReturn:
    """Start the server again whenever it has stopped, or can make no pictures; return never.

    A model's process that dies or hangs leaves Triton running, and ready by its own word. So the processes are watched,
    and every `every_s` seconds a picture is begun.
    """
    from tiny_sd_client import Client, TinySDError  # noqa: PLC0415 -- needs the path that main sets
    from tiny_sd_client.health import check  # noqa: PLC0415

    with Client(f"grpc://{server.grpc_url}", patience=0) as client:
        while True:
            try:
                due = time.monotonic() + every_s
                while time.monotonic() < due:
                    server.check(on_line)
                    server.check_models()
                    time.sleep(_POLL_S)
                check(client, _CHECK_S)
            except (ServeError, TinySDError) as error:
                _say(console, error, "starting again")
                server.kill()
                _start_again(server, console, on_line)


def _start_again(server: LocalServer, console: Console, on_line: OnLine | None) -> None:
    """Try until the server starts: what keeps it from that may pass, as a full disk does."""
    for pause_s in itertools.chain(_PAUSES_S, itertools.repeat(_PAUSES_S[-1])):
        try:
            start(server, console, on_line)
        except (ServeError, OSError) as error:
            _say(console, error, f"trying again in {pause_s} s")
            time.sleep(pause_s)
        else:
            return


def _say(console: Console, error: Exception, what_now: str) -> None:
    console.print(f"{time.strftime('%H:%M:%S')}  {str(error).splitlines()[0]}; {what_now}")


def print_endpoints(server: LocalServer, console: Console) -> None:
    """Where the server can be reached."""
    console.print("Ready. Ctrl-C stops.")
    console.print(f"  HTTP     http://{server.http_url}")
    console.print(f"  gRPC     {server.grpc_url}")
    console.print(f"  metrics  http://{server.metrics_url}/metrics")
    console.print(f"  log      {server.log_path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Start a local Triton Inference Server on this repository's models.",
        epilog="Everything after -- goes to tritonserver unchanged.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 opens the server to the network")
    add("--http-port", type=int, default=Ports.http, metavar="PORT", help="HTTP port")
    add("--grpc-port", type=int, default=Ports.grpc, metavar="PORT", help="gRPC port")
    add("--metrics-port", type=int, default=Ports.metrics, metavar="PORT", help="Prometheus port")
    add("--free-ports", action="store_true", help="take three free ports instead, and print them")
    add(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help=f"diffusers folder to serve; else {VARIABLE}, else the default, made at the first start",
    )
    add("--config", metavar="NAME", help="take configs/NAME.pbtxt of each model that has one")
    add("--model-repository", type=_folder, default=MODEL_REPOSITORY, metavar="PATH", help="the models to load")
    add("--log", type=Path, metavar="FILE", help="Triton's log; else .cache/triton/<HTTP port>.log")
    add("--verbose", action="store_true", help="show Triton's log here too")
    add(
        "--supervise",
        type=float,
        nargs="?",
        const=15.0,
        metavar="SECONDS",
        help="begin a picture every so often (15 s without a number), and start the server again if it cannot",
    )
    add("--ready-timeout", type=float, default=600, metavar="SECONDS", help="give up if not ready by then")
    stopping = "how long to wait for Triton to exit; it breaks off what is in flight, which `tiny-sd drain` waits for"
    add("--exit-timeout", type=int, default=30, metavar="SECONDS", help=stopping)
    return parser


def _folder(text: str) -> Path:
    return Path(text).expanduser().resolve()


if __name__ == "__main__":
    sys.exit(main())
