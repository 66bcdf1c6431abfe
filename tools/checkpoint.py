#!/usr/bin/env python
"""Make checkpoint folders in diffusers' layout."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from local_server.checkpoint import make_random
from local_server.install import ROOT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. The exit code: 0, or 1 after an error."""
    # This checkout's engine, installed or not.
    sys.path.insert(0, str(ROOT / "engine"))
    options = _parser().parse_args(argv)
    try:
        write_random(options.architecture, options.out)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def write_random(architecture: str, out: Path) -> None:
    """Write random weights of an architecture to `out` and print the size of each network.

    Raises FileExistsError if there is something at `out`.
    """
    from safetensors import safe_open  # noqa: PLC0415 - heavy libraries load once the arguments have been read

    if out.exists():
        raise FileExistsError(f"{out} exists; name a folder that does not")
    make_random(architecture, out.resolve())
    for weights in sorted(out.glob("*/*.safetensors")):
        with safe_open(weights, framework="np") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118 - not a dict
        parameters = sum(math.prod(shape) for shape in shapes)
        print(f"{weights.parent.name:<14}{parameters:>13,} parameters")
    print(f"Random weights of {architecture}: {out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    random = commands.add_parser("random", help="random weights: pictures of nothing, at the true speed")
    random.add_argument("--architecture", choices=("test", "tiny-sd", "small-sd", "sd15"), required=True)
    random.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    return parser


if __name__ == "__main__":
    sys.exit(main())
