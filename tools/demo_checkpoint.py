#!/usr/bin/env python
"""Make the built-in checkpoint from nothing: draw pictures, train on them, distil. A broken-off run is taken up again.

Some hours on two CPU cores.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from local_server.install import ROOT
from serve import QUIET

WORK = ROOT / ".cache" / "demo"
_PARTS = ("encoder", "text", "teacher", "decoder", "student", "words", "pack", "ablation", "whole", "curves")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 with the parts made, 1 after an error, 130 if cut short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(_PARTS)}; default: all of them, in this order"
    )
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="for everything in between; %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "checkpoints" / "demo", metavar="DIR", help="%(default)s")
    options = parser.parse_args(argv)
    if unknown := set(options.parts) - set(_PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; parts: {', '.join(_PARTS)}")
    sys.path[:0] = [str(ROOT / "engine"), str(ROOT / "client")]
    os.environ.update(QUIET)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from demo_recipe.recipe import make  # noqa: PLC0415 -- heavy libraries load once the options have been read
    from distillation.errors import DistillError  # noqa: PLC0415
    from tiny_sd_engine.device import limit_threads  # noqa: PLC0415
    from tiny_sd_engine.errors import CheckpointError  # noqa: PLC0415

    limit_threads()
    try:
        for part in options.parts or _PARTS:
            print(part)
            make(part, options.work, options.out)
    except (DistillError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
