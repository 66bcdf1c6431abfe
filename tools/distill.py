#!/usr/bin/env python
"""Distil a Stable Diffusion 1.x checkpoint into a student with fewer blocks, as BK-SDM and Tiny-SD were made.

The student learns the task, the teacher's output and the teacher's features. --out becomes a checkpoint that can be
served; its folder training/ holds the losses (losses.jsonl, losses.png) and the state to go on from.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillation.errors import DistillError, UnfitOptions
from distillation.options import Options
from local_server.install import ROOT
from serve import QUIET

_EXAMPLES = """\
examples:
  distill.py --teacher sd15 --student tiny --out tiny --data folder:pictures --batch 32 --precision bf16
  distill.py --teacher random --student same --no-teacher --train-text-encoder --out teacher --data drawings
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Train a student. The exit code: 0, 1 after an error, 130 if it was interrupted."""
    arguments = vars(parse_arguments(argv))
    resume = arguments.pop("resume")
    try:
        options = Options(**arguments)
    except UnfitOptions as error:
        return _fail(error)
    # This checkout's engine, installed or not.
    sys.path.insert(0, str(ROOT / "engine"))
    os.environ.update(QUIET)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or it warns in each process that reads pictures
    from distillation.trainer import train  # noqa: PLC0415 - heavy libraries load once the options have been checked
    from tiny_sd_engine.device import limit_threads  # noqa: PLC0415
    from tiny_sd_engine.errors import CheckpointError  # noqa: PLC0415

    limit_threads()
    try:
        train(options, resume=resume)
    except (DistillError, CheckpointError, OSError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        print(f"interrupted; --resume goes on from the last saved state in {options.out}", file=sys.stderr)
        return 130
    return 0


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line: the fields of `Options`, and `resume`."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    networks = parser.add_argument_group("networks").add_argument
    networks("--teacher", dest="checkpoint", type=Path, required=True, metavar="DIR", help="diffusers folder")
    networks(
        "--student",
        choices=("tiny", "small", "same"),
        required=True,
        help="small: one layer a block; tiny: also no middle and no innermost block; same: the folder's own U-Net",
    )
    networks("--no-teacher", dest="taught", action="store_false", help="learn from the pictures alone")
    networks("--fresh", action="store_true", help="start from random weights instead of the teacher's")
    networks("--start", type=Path, metavar="DIR", help="start from the student that an earlier run made, cut alike")
    networks("--train-text-encoder", action="store_true", help="train it along; with --no-teacher")
    networks("--out", type=Path, required=True, metavar="DIR", help="checkpoint folder to make")

    data = parser.add_argument_group("data").add_argument
    data(
        "--data",
        required=True,
        metavar="SOURCE",
        help="folder:PATH (images, with metadata.jsonl or a .txt beside each); dataset:NAME (of the library datasets); "
        "drawings or drawings:NUMBER (drawn by this project)",
    )
    data("--size", type=int, metavar="PIXELS", help="edge of the pictures; default: as the teacher's U-Net says")
    data(
        "--more-sizes",
        type=_sizes,
        metavar="PIXELS,…",
        default=(),
        help="batches of these sizes too, in turn, with fewer of larger pictures",
    )
    data(
        "--more-sizes-teacher",
        type=Path,
        metavar="DIR",
        help="the teacher of these, if another: a folder with a U-Net of the same architecture",
    )
    data(
        "--cache-latents",
        dest="cache",
        type=Path,
        metavar="DIR",
        help="encode pictures and captions once, into this folder, which other runs may use as well",
    )
    data("--caption-dropout", **_value("caption_dropout", float, "SHARE", "of captions left empty, for guidance"))
    data("--noise-bias", **_value("noise_bias", float, "POWER", "of the timestep, by which it is drawn"))
    data("--workers", **_value("workers", int, "N", "processes that read pictures where latents are not cached"))

    learning = parser.add_argument_group("learning").add_argument
    learning("--steps", **_value("steps", int, "N", "of the optimizer"))
    learning("--batch", **_value("batch", int, "N", "pictures of a batch"))
    learning("--accumulate", **_value("accumulate", int, "N", "batches of a step"))
    learning("--lr", **_value("learning_rate", float, "RATE", "learning rate"))
    learning("--warmup", **_value("warmup", int, "N", "steps in which the learning rate rises from 0"))
    learning("--schedule", choices=("constant", "cosine"), default=Options.schedule, help="of the learning rate then")
    learning("--clip", **_value("clip", float, "NORM", "largest norm of the gradient"))
    learning(
        "--ema", **_value("ema", float, "DECAY", "largest decay of the averaged weights, which are written; 0: none")
    )
    learning("--w-task", **_value("w_task", float, "WEIGHT", "of the noise or velocity that was added"))
    learning("--w-out", **_value("w_out", float, "WEIGHT", "of the teacher's output"))
    learning("--w-feat", **_value("w_feat", float, "WEIGHT", "of the teacher's features"))
    learning("--teacher-guidance", **_value("teacher_guidance", float, "SCALE", "at which the teacher is asked"))
    learning(
        "--student-guidance", **_value("student_guidance", float, "SCALE", "at which the student is to be like it")
    )
    learning(
        "--negatives",
        **_value("negatives", float, "SHARE", "of pictures that guidance leads away from another caption"),
    )
    learning("--seed", **_value("seed", int, "N", "of everything drawn by chance"))

    machine = parser.add_argument_group("machine").add_argument
    machine("--precision", choices=("no", "bf16", "fp16"), default=Options.precision, help="mixed precision")
    machine("--device", choices=("auto", "CPU", "GPU"), default=Options.device, help="auto: a GPU where there is one")
    machine("--save-every", **_value("save_every", int, "N", "steps between two saved states"))
    machine("--resume", action="store_true", help="go on from the last saved state, or begin where there is none")
    return parser.parse_args(argv)


def _value(field: str, kind: type, metavar: str, help: str) -> dict[str, Any]:
    """What makes an option of a field, with the field's default."""
    default = getattr(Options, field)
    return {"dest": field, "type": kind, "metavar": metavar, "default": default, "help": f"{help}; default {default}"}


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: whole numbers, comma-separated") from error


def _fail(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
