#!/usr/bin/env python
"""Start the server, make one picture, say where it is, and stop the server again."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import serve
from local_server import LocalServer, ServeError
from local_server.checkpoint import VARIABLE, choose_checkpoint
from local_server.install import ROOT
from tiny_sd_client import Client, TinySDError

PROMPT = "a small red circle on a blue background"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 with a picture, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default=PROMPT)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--checkpoint", type=Path, metavar="PATH", help="diffusers folder; default: the built-in one")
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "demo.jpg", metavar="FILE")
    options = parser.parse_args(argv)
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    sys.path[:0] = [str(ROOT / "engine"), str(ROOT / "client")]
    os.environ.update(serve.QUIET)
    try:
        checkpoint = choose_checkpoint(options.checkpoint)
        with LocalServer(env={VARIABLE: str(checkpoint)}) as server:
            console.print(f"Triton serves {checkpoint}")
            make_picture(server, options.prompt, options.seed, options.out, console)
    except (ServeError, OSError, TinySDError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def make_picture(server: LocalServer, prompt: str, seed: int, out: Path, console: Console) -> None:
    """Ask the server for one picture over gRPC and write it to `out`."""
    with Client(f"grpc://{server.grpc_url}") as client:
        made = client.generate(prompt, seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(made.files[0])
    console.print(f"Picture   {out}  ({made.timings.total:.1f} s)")
    for name, value in made.parameters.picture().items():
        console.print(f"  {name:<20} {value}")


if __name__ == "__main__":
    sys.exit(main())
