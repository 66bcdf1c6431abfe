"""What may be typed."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tiny_sd_client.command import parameters
from tiny_sd_client.command.failures import EXPLANATION, UsageError
from tiny_sd_client.command.files import SUFFIXES

URL_VARIABLE = "TINY_SD_URL"
DEFAULT_URL = "grpc://localhost:8001"
PREVIEW_EVERY = 2

EXAMPLES = """\
examples:
  tiny-sd generate "a small red circle" -n 2 --steps 25 --out circle.jpg
  tiny-sd generate --like circle.jpg --guidance 9
  tiny-sd generate --file prompts.txt --out pictures/ --grid sheet.jpg
  tiny-sd show circle.jpg
"""
RESULTS = """\
results:
  The files' names, one a line, on stdout. With --json one object for each
  generation: job_id, files, seeds, parameters and seconds {server, total};
  a sheet gives {"sheet": FILE} at the end.
"""
PROMPT_FILE = """\
prompt files (--file):
  One prompt a line; empty lines and lines that begin with # are left out. A
  line that begins with { is a JSON object of documented parameters, such as
  {"prompt": "a cat", "num_inference_steps": 30}. Options hold for every line
  that does not say otherwise. The first failure ends the run; what was
  finished before it is kept.
"""


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, like every other error."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()  # a closed pipe shows here, where main handles it
        super().exit(status, message)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The options that ``arguments`` ask for. Raises :class:`UsageError`; SystemExit after ``--help``."""
    parser = _Parser(
        prog="tiny-sd", description="Make pictures with a Tiny-SD server.", epilog=f"{EXAMPLES}\n{EXPLANATION}"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    generate = commands.add_parser(
        "generate",
        usage="%(prog)s [PROMPT] [--like FILE | --file FILE] [options]",
        help="make pictures",
        description="Make pictures and write them into files.",
        epilog=f"{RESULTS}\n{PROMPT_FILE}\n{EXPLANATION}",
    )
    _add_generate_options(generate)

    show = commands.add_parser(
        "show",
        help="print the parameters inside pictures",
        description="Print the parameters that picture files were made with.",
        epilog=EXPLANATION,
    )
    show.add_argument("files", nargs="+", metavar="FILE", help="JPEG, PNG or WebP file; - for stdin")
    _add_scripting_option(show)

    for name, summary, description in (
        ("status", "tell how the server is", "Tell whether the server is ready, its version, and how busy it is."),
        ("jobs", "list the generations in flight", "List the generations in flight, oldest first."),
        ("cancel", "stop generations", "Stop generations. An unknown id does not keep the others from it."),
    ):
        command = commands.add_parser(name, help=summary, description=description, epilog=EXPLANATION)
        if name == "cancel":
            command.add_argument("job_ids", nargs="+", metavar="ID", help="as tiny-sd jobs shows it")
        _add_scripting_option(command)
        _add_connection_options(command)

    _add_health_commands(commands)
    return parser.parse_args(arguments)


def _add_health_commands(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="find out whether the server can make pictures",
        description="Begin a picture and leave it at its first step; a full server is watched getting on instead. For "
        "health checks: Triton goes on calling itself ready when the process of one of its models is dead.",
        epilog=EXPLANATION,
    )
    check.add_argument(
        "--whole", action="store_true", help="finish the picture, which tries the VAE decoder as well; for GPUs"
    )
    drain = commands.add_parser(
        "drain",
        help="wait until nothing is in flight",
        description="Wait until no generation is in flight, before the server is stopped. It does not keep anybody "
        "from sending more: take the server out of its load balancer first.",
        epilog=EXPLANATION,
    )
    for command, seconds in ((check, 30.0), (drain, 300.0)):
        command.add_argument(
            "--timeout",
            type=_within(float, 0.001),
            default=seconds,
            metavar="SECONDS",
            help="in all. Default: %(default)g",
        )
        _add_scripting_option(command)
        _add_connection_options(command)


def _add_generate_options(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group("what to make")
    source.add_argument("prompt", nargs="?", metavar="PROMPT", help="what the picture should show")
    source.add_argument(
        "--like",
        metavar="FILE",
        help="make this picture again from the parameters inside it; a prompt, options and lines of a prompt file "
        "change them; - for stdin",
    )
    source.add_argument(
        "--file", metavar="FILE", help="make pictures for all prompts of a file, see below; - for stdin"
    )

    parameters.add_options(parser.add_argument_group("parameters"))

    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        default=".",
        metavar="PATH",
        help="a file (.jpg, .jpeg, .png or .webp, which chooses the format as well); a folder, made if missing, where "
        "files are named after their seeds; or - for stdout. Default: the current folder. A name that is taken gets "
        "-2, -3 and so on",
    )
    output.add_argument("--overwrite", action="store_true", help="replace files that exist, instead of numbering")
    output.add_argument(
        "--grid",
        nargs="?",
        const=True,
        type=_sheet,
        metavar="FILE",
        help="also put all pictures on one sheet. Default: grid.jpg in the folder of --out, or NAME-grid beside its "
        "file. What follows --grid is its FILE: put the prompt before it",
    )
    _add_scripting_option(output)
    output.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    output.add_argument(
        "--preview-every",
        type=_within(int, 0, 100),
        default=PREVIEW_EVERY,
        metavar="K",
        help="steps between previews, which are shown where the terminal can (true colour). Allowed: 0 (none) to 100. "
        "Default: %(default)s",
    )

    bounds = parser.add_argument_group("bounds")
    bounds.add_argument(
        "--timeout",
        type=_within(float, 0.001),
        metavar="SECONDS",
        help="for one generation, from asking to its end; then the server stops as well. Default: none",
    )
    bounds.add_argument(
        "--patience",
        type=_within(float, 0),
        default=60.0,
        metavar="SECONDS",
        help="how long to go on trying while the server is busy or out of reach; 0: try once. Default: %(default)g",
    )
    bounds.add_argument(
        "--concurrency",
        type=_within(int, 1, 256),
        default=8,
        metavar="N",
        help="prompts of a file that are made at the same time. Default: %(default)s",
    )
    _add_connection_options(parser)


def _add_connection_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument(
        "--url",
        default=os.environ.get(URL_VARIABLE) or DEFAULT_URL,
        help=f"grpc://, grpcs://, http:// or https:// with host and port. Default: ${URL_VARIABLE}, else {DEFAULT_URL}",
    )
    group.add_argument(
        "--header",
        action="append",
        default=[],
        type=_header,
        metavar="NAME:VALUE",
        help="sent with every request; may be given several times",
    )
    group.add_argument("--ca", type=Path, metavar="FILE", help="authorities to trust instead of the usual ones, PEM")
    group.add_argument("--cert", type=Path, metavar="FILE", help="our certificate, PEM")
    group.add_argument("--key", type=Path, metavar="FILE", help="its private key, PEM")


def _add_scripting_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a line on stdout; errors too, on stderr")


def _header(text: str) -> tuple[str, str]:
    parts = re.fullmatch(r"([A-Za-z0-9._-]+):([ -~]*)", text)
    if not parts:
        raise argparse.ArgumentTypeError("allowed: NAME:VALUE, a name of letters, digits and . _ -, both in ASCII")
    return parts[1], parts[2].strip()


def _sheet(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in SUFFIXES:
        allowed = f"allowed: a file in {', '.join(SUFFIXES)}, or nothing (put the prompt before --grid)"
        raise argparse.ArgumentTypeError(f"got {text!r}; {allowed}")
    return path


def _within(kind: type[int] | type[float], least: float, most: float | None = None) -> Callable[[str], float]:
    """A converter to a number from ``least`` to ``most``."""
    noun = "an integer" if kind is int else "a number"
    allowed = f"allowed: {noun} " + (f"of at least {least}" if most is None else f"from {least} to {most}")

    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= (math.inf if most is None else most):
            raise argparse.ArgumentTypeError(f"got {text!r}; {allowed}")
        return value

    return number
