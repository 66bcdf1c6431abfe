#!/usr/bin/env python
"""Fetch, convert, verify and describe checkpoints in diffusers' layout, or make one of random weights."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from local_server.checkpoint import make_random
from local_server.install import ROOT

if TYPE_CHECKING:
    from checkpoints.manifest import Source


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. The exit code: 0, 1 after an error, 130 if interrupted."""
    options = _parser().parse_args(argv)
    # This checkout's engine, installed or not.
    sys.path[:0] = [str(ROOT / "engine"), str(ROOT / "client")]
    from checkpoints.fetching import FetchError  # noqa: PLC0415 -- needs the path above
    from tiny_sd_engine.errors import EngineError  # noqa: PLC0415

    # SIGTERM ends it as Ctrl-C does: what is half made goes away.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    try:
        options.run(options, console)
    except (EngineError, FetchError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


# Each command loads the heavy libraries that it needs, once the arguments have been read.


def random(options: argparse.Namespace, console: Console) -> None:
    """Write random weights of an architecture."""
    _check_free(options.out)
    make_random(options.architecture, options.out.resolve())
    _describe(options.out, console)


def fetch(options: argparse.Namespace, console: Console) -> None:
    """Download what is needed of a repository, and convert it."""
    from checkpoints.fetching import fetch  # noqa: PLC0415

    def on_start(commit: str, count: int, size: int) -> None:
        console.print(f"{options.repository} at {commit}: {count} files, {size / 1e6:,.1f} MB")

    _check_free(options.out)
    download = fetch(options.repository, options.revision, options.endpoint, on_start)
    _convert(download.folder, options, console, download.source)


def convert(options: argparse.Namespace, console: Console) -> None:
    """Make a folder of its own from a local one."""
    _convert(options.folder, options, console, None)


def verify(options: argparse.Namespace, console: Console) -> None:
    """Look at everything in a folder, and use it once."""
    from checkpoints.verification import verify  # noqa: PLC0415

    _hush_libraries()
    with console.status("verifying"):
        verify(options.folder, _printer(console))
    console.print(f"{options.folder} can be served.")


def info(options: argparse.Namespace, console: Console) -> None:
    """Describe a folder."""
    _describe(options.folder, console)


def _convert(folder: Path, options: argparse.Namespace, console: Console, source: Source | None) -> None:
    from checkpoints.conversion import convert  # noqa: PLC0415

    _hush_libraries()
    with console.status("converting and verifying"):
        convert(folder, options.out, options.precision, _printer(console), source)
    console.print(f"Serve it: TINY_SD_CHECKPOINT={options.out} make serve")


def _describe(folder: Path, console: Console) -> None:
    from checkpoints.overview import overview  # noqa: PLC0415

    console.print(overview(folder))


def _printer(console: Console) -> Callable[[str, str], None]:
    return lambda what, outcome: console.print(f"  {what:<14}{outcome}")


def _check_free(out: Path) -> None:
    """Raise FileExistsError if there is something at `out`: better before a download than after it."""
    if out.exists():
        raise FileExistsError(f"{out} exists; name a folder that does not")


def _hush_libraries() -> None:
    """Their progress bars and advice to developers would drown ours."""
    import diffusers  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    diffusers.utils.logging.set_verbosity_error()


def _parser() -> argparse.ArgumentParser:
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument("folder", type=_path, metavar="FOLDER", help="checkpoint in diffusers' layout")
    out = argparse.ArgumentParser(add_help=False)
    out.add_argument("--out", type=_path, required=True, metavar="DIR", help="folder to make")
    precision = argparse.ArgumentParser(add_help=False)
    precision.add_argument(
        "--precision",
        choices=("fp16", "bf16", "fp32"),
        default="fp16",
        help="of the weights (%(default)s); fp16 is what GPUs compute in, fp32 keeps every published digit",
    )

    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    fetching = commands.add_parser("fetch", parents=[out, precision], help="from a Hugging Face hub")
    fetching.set_defaults(run=fetch)
    fetching.add_argument("repository", nargs="?", default="segmind/tiny-sd", metavar="REPOSITORY", help="%(default)s")
    fetching.add_argument("--revision", default="main", help="branch, tag or commit (%(default)s)")
    fetching.add_argument("--endpoint", metavar="URL", help="hub to ask; else HF_ENDPOINT, else huggingface.co")
    converting = commands.add_parser("convert", parents=[folder, out, precision], help="a local folder")
    converting.set_defaults(run=convert)
    verifying = commands.add_parser("verify", parents=[folder], help="say what is wrong with a folder, if anything is")
    verifying.set_defaults(run=verify)
    describing = commands.add_parser("info", parents=[folder], help="what is in a folder")
    describing.set_defaults(run=info)
    making = commands.add_parser("random", parents=[out], help="random weights: pictures of nothing, at the true speed")
    making.set_defaults(run=random)
    making.add_argument("--architecture", choices=("test", "tiny-sd", "small-sd", "sd15"), required=True)
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


if __name__ == "__main__":
    sys.exit(main())
