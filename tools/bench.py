#!/usr/bin/env python
"""The project's yardstick: what others offer, our engine in process, and the engine served by a real Triton.

The report goes to stdout as Markdown, progress to stderr; --report keeps it, with every measurement and a figure.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from local_server import ServeError
from local_server.checkpoint import check, make_random
from local_server.install import ROOT
from serve import QUIET

if TYPE_CHECKING:
    from benchmark.contenders import Setup
    from benchmark.report import Report

CHECKPOINTS = ROOT / ".cache" / "checkpoints"
ARCHITECTURES = ("test", "tiny-sd", "small-sd", "sd15")
SCENARIOS = ("latency", "throughput", "mixed", "trace", "near-capacity", "first-signs", "gateway", "start")
CONTENDERS = ("diffusers", "diffusers-best", "openvino", "engine", "served")
USUAL_CONTENDERS = "diffusers,engine,served"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report. Returns the exit code: 1 after an error, or when pictures that must be equal are not."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = parse_arguments(arguments)
    # This checkout's engine is measured, as it is served, installed or not; the contenders' processes inherit both.
    sys.path[:0] = [str(ROOT / "engine"), str(ROOT / "client"), str(ROOT)]
    os.environ.update(QUIET)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as LocalServer does: the same for all contenders
    if options.device == "CPU":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Triton's KIND_AUTO would take a GPU
    from benchmark.circumstances import circumstances  # noqa: PLC0415 -- needs the path and environment above
    from benchmark.contenders import BenchError  # noqa: PLC0415
    from tiny_sd_client import TinySDError  # noqa: PLC0415
    from tiny_sd_engine.errors import EngineError  # noqa: PLC0415

    try:
        setup = make_setup(options)
        where = circumstances(setup, options.repeats, shlex.join(["tools/bench.py", *arguments]))
        report = measure(setup, options)
    except (BenchError, EngineError, ServeError, TinySDError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    write(report, where, options.report)
    return 1 if report.failures else 0


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options, checked as far as no checkpoint is needed for it."""
    parser = argparse.ArgumentParser(
        description="Compare diffusers, the engine in process, and the engine served by a local Triton.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--scenario", choices=SCENARIOS, default="latency", help="what to measure")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--architecture", choices=ARCHITECTURES, default="tiny-sd", help="of random weights")
    which.add_argument("--checkpoint", type=Path, metavar="DIR", help="a diffusers folder instead of random weights")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="of the engine, served or not")
    add("--steps", type=int, default=20, metavar="N", help="denoising steps of a picture, 20 to 100")
    add("--size", type=int, default=512, metavar="PIXELS", help="width and height")
    add("--repeats", type=_count, default=4, metavar="N", help="rounds; an even number balances the order")
    add("--run-seconds", type=_count, default=120, metavar="N", help="for trace and near-capacity; of each Locust run")
    add("--device", choices=("auto", "CPU", "GPU"), default="auto", help="auto: a GPU where there is one")
    add(
        "--contenders",
        type=_contenders,
        default=USUAL_CONTENDERS,
        metavar="NAMES",
        help=f"for latency; comma-separated, of {', '.join(CONTENDERS)}",
    )
    add("--report", type=_stem, metavar="STEM", help="write STEM.md, STEM.json (every measurement) and STEM.png")
    return parser.parse_args(argv)


def make_setup(options: argparse.Namespace) -> Setup:
    """What the contenders are given, with the checkpoint made if need be, and checked.

    Raises ServeError for a checkpoint, EngineError for a device and InvalidParameter for a request that cannot be used.
    """
    from benchmark.contenders import Setup  # noqa: PLC0415 -- as in main
    from tiny_sd_engine.device import select_device  # noqa: PLC0415

    named = options.checkpoint
    checkpoint = named.expanduser().resolve() if named else CHECKPOINTS / options.architecture
    if not named:
        make_random(options.architecture, checkpoint)
    check(checkpoint)
    device = "GPU" if select_device(options.device).mixes_requests else "CPU"
    setup = Setup(checkpoint, device, options.precision, options.size, options.steps)
    setup.request(0)
    return setup


def measure(setup: Setup, options: argparse.Namespace) -> Report:
    """Run the scenario that was asked for."""
    from benchmark.arrivals import near_capacity, trace  # noqa: PLC0415 -- as in main
    from benchmark.first_signs import first_signs  # noqa: PLC0415
    from benchmark.gateway import overhead  # noqa: PLC0415
    from benchmark.latency import latency  # noqa: PLC0415
    from benchmark.mixed import mixed  # noqa: PLC0415
    from benchmark.start import start  # noqa: PLC0415
    from benchmark.throughput import throughput  # noqa: PLC0415

    if options.scenario == "latency":
        return latency(setup, options.repeats, options.contenders)
    if options.scenario in ("trace", "near-capacity"):
        arrivals = trace if options.scenario == "trace" else near_capacity
        return arrivals(setup, options.repeats, options.run_seconds)
    scenarios = {
        "throughput": throughput,
        "mixed": mixed,
        "first-signs": first_signs,
        "gateway": overhead,
        "start": start,
    }
    return scenarios[options.scenario](setup, options.repeats)


def write(report: Report, circumstances: dict[str, str], stem: Path | None) -> None:
    """Print the report, and write its three files if they have a ``stem``."""
    from benchmark.chart import save  # noqa: PLC0415 -- as in main

    markdown = report.markdown(circumstances)
    print(markdown, end="")
    if stem:
        Path(f"{stem}.md").write_text(markdown)
        Path(f"{stem}.json").write_text(json.dumps(report.json(circumstances), indent=2) + "\n")
        save(report.chart, Path(f"{stem}.png"))


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a whole number of at least 1")
    return int(text)


def _stem(text: str) -> Path:
    # Better told now than after an hour.
    if not Path(text).parent.is_dir():
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a name in a folder that exists")
    if find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("matplotlib draws the figure; .venv/bin/pip install '.[train]'")
    return Path(text)


def _contenders(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in CONTENDERS]:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}; allowed: {', '.join(CONTENDERS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
