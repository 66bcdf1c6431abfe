"""Which error gives which exit code, and how it is told."""

from __future__ import annotations

import json
import sys

from tiny_sd_client.command.parameters import OPTIONS
from tiny_sd_client.command.terminal import printable
from tiny_sd_client.errors import Busy, Cancelled, DeadlineExceeded, TinySDError, UnknownJob
from tiny_sd_client.parameters import InvalidParameter
from tiny_sd_client.pictures import InvalidImage


class UsageError(Exception):
    """What was typed, or what a prompt file says, makes no sense."""


Failure = (TinySDError, UsageError, OSError)
"""What a command may raise, besides KeyboardInterrupt; all else is a bug."""
INTERRUPTED = 130

_CODES: tuple[tuple[int, tuple[type[Exception], ...]], ...] = (
    (2, (UsageError, InvalidParameter, InvalidImage)),
    (3, (Busy,)),
    (4, (DeadlineExceeded,)),
    (5, (Cancelled, UnknownJob)),
)
_DETAILS = ("parameter", "allowed", "retry_after", "in_flight", "limit", "job_id")
EXPLANATION = f"""\
exit codes:
  0    done
  1    nobody answers, the server is not ready or at fault, or a file cannot be
       read or written
  2    wrong usage, an invalid parameter, or a picture without parameters
  3    the server is busy
  4    the timeout passed; of a check: the server is not healthy
  5    the generation was cancelled, or no generation has this id
  {INTERRUPTED}  interrupted by Ctrl-C; the server stops as well

An error is one line on stderr; with --json it is an object with "error" (its
kind), "message", and what else is known.
"""


def report(error: BaseException, *, as_json: bool) -> int:
    """Tell ``error`` on stderr, in one line that is safe for a terminal, and return its exit code."""
    if as_json:
        known = {name: value for name in _DETAILS if (value := getattr(error, name, None)) is not None}
        line = json.dumps({"error": type(error).__name__, "message": _message(error), **known})
    else:
        line = f"tiny-sd: {printable(_message(error))}"
    sys.stderr.write(f"{line}\n")
    return next((code for code, kinds in _CODES if isinstance(error, kinds)), 1)


def _message(error: BaseException) -> str:
    """The message, after where it happened (the error's notes), with the option in front of a parameter's own name."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, InvalidParameter) and error.parameter in OPTIONS:
        message = message.replace(error.parameter, f"{OPTIONS[error.parameter][-1]} ({error.parameter})", 1)
    return ": ".join([*getattr(error, "__notes__", ()), message])
