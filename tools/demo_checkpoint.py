#!/usr/bin/env python
"""Make the parts of the built-in checkpoint, one after the other. A run that was broken off goes on where it was."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from demo_recipe.autoencoder import Plan, train


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 with the part made, 130 if cut short."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    autoencoder = parts.add_parser(
        "autoencoder",
        help="train the autoencoder on drawings, from scratch",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    autoencoder.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for its vae/ and its state")
    autoencoder.add_argument(
        "--steps", type=int, default=2500, metavar="N", help="batches; about a second each on two CPU cores"
    )
    autoencoder.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        make_autoencoder(options.out, Plan(options.steps, seed=options.seed))
    except KeyboardInterrupt:
        return 130
    return 0


def make_autoencoder(out: Path, plan: Plan) -> None:
    """Train it and write it to ``out/vae``, with a progress bar."""
    columns = (TextColumn("autoencoder"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, TimeRemainingColumn()) as progress:
        bar = progress.add_task("", total=plan.steps, loss="")
        model = train(plan, out, lambda step, loss: progress.update(bar, completed=step, loss=f"loss {loss:.3f}"))
    model.save_pretrained(out / "vae")


if __name__ == "__main__":
    sys.exit(main())
