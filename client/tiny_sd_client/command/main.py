"""From the command line to an exit code. Errors end here, as one line on stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from tiny_sd_client.command import generate, health, server, show
from tiny_sd_client.command.arguments import parse_arguments
from tiny_sd_client.command.failures import INTERRUPTED, Failure, report

COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "generate": generate.run,
    "show": show.run,
    "status": server.status,
    "jobs": server.jobs,
    "cancel": server.cancel,
    "check": health.check,
    "drain": health.drain,
}


def main(arguments: Sequence[str]) -> int:
    """Run the command line ``arguments`` and return the exit code."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC writes its own lines on stderr, besides what it raises
    for stream in (sys.stdout, sys.stderr):
        _never_fail_to_encode(stream)
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has enough. Python flushes stdout once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _run(arguments: Sequence[str]) -> int:
    as_json = "--json" in arguments  # known even where they cannot be parsed
    try:
        options = parse_arguments(arguments)
        return COMMANDS[options.command](options)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        report(KeyboardInterrupt("interrupted"), as_json=as_json)
        return INTERRUPTED
    except Failure as error:
        return report(error, as_json=as_json)


def _never_fail_to_encode(stream: TextIO) -> None:
    """A locale without the characters of a prompt or file name shows their codes instead."""
    if reconfigure := getattr(stream, "reconfigure", None):
        reconfigure(errors="backslashreplace")
