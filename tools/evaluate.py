#!/usr/bin/env python
"""How well pictures follow their prompts.

A checkpoint of the drawings' world is asked for combinations of attributes that training never saw, and what its
pictures show is read from the pixels. A checkpoint of the real world is scored with --metrics instead.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from local_server import ServeError
from local_server.checkpoint import check, choose_checkpoint
from local_server.install import ROOT
from serve import QUIET

if TYPE_CHECKING:
    from evaluation.orders import Order, Painter
    from evaluation.protocol import Report
    from evaluation.report import Contender, Findings
    from tiny_sd_engine.pipeline import Pipeline

METRICS = ("clip", "fid")
_ON_SHEET = 48  # pictures


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and report. Returns the exit code: 0, or 1 after an error."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = parse_arguments(arguments)
    # This checkout's engine and client are evaluated, installed or not.
    sys.path[:0] = [str(ROOT / "engine"), str(ROOT / "client")]
    os.environ.update(QUIET)
    from evaluation.metrics import MetricError  # noqa: PLC0415 - needs the path and environment above
    from tiny_sd_client import TinySDError  # noqa: PLC0415
    from tiny_sd_engine.errors import EngineError  # noqa: PLC0415

    try:
        options.orders = orders(options)
        with painter(options) as (path, pipeline, paint), progress() as report:
            findings = score(options, paint, report) if options.metrics else follow(options, paint, report)
            if options.against:
                findings = replace(findings, contenders=compare(options, path, pipeline, findings, report))
        write(findings, circumstances(options, arguments, path), options.out)
    except (EngineError, MetricError, OSError, ServeError, TinySDError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options, checked as far as nothing of ours is needed for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--checkpoint", type=Path, metavar="DIR", help="diffusers folder; None: the built-in one")
    where.add_argument("--url", help="a running server instead, as grpc://localhost:8001")
    add("--against", type=Path, metavar="DIR", help="a second checkpoint, the teacher, to compare with")
    add("--prompts", type=_count, default=200, metavar="N", help="for shapes; with --metrics, captions to score")
    add("--landscapes", type=_count, default=50, metavar="N", help="prompts for illustrated scenes")
    add("--checks", type=_count, default=40, metavar="N", help="pictures a case, for guidance and negative prompts")
    add("--schedulers", default="UniPC", metavar="NAMES", help="comma-separated, or all")
    add("--steps", type=int, default=20, help="denoising steps, 20 to 100")
    add("--guidance", type=float, default=7.5, help="guidance scale")
    add("--against-guidance", type=float, metavar="SCALE", help="the second checkpoint's; None: the same")
    add("--size", type=int, default=512, metavar="PIXELS", help="width and height")
    add("--seed", type=int, default=0, help="of the prompts and of the first picture")
    add("--rounds", type=_count, default=4, metavar="N", help="of the speed comparison; even: in balanced order")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="of checkpoints")
    add("--device", choices=("auto", "CPU", "GPU"), default="auto", help="of checkpoints")
    add("--out", type=Path, default=ROOT / "output" / "evaluation", metavar="DIR", help="for report and sheets")
    real = parser.add_argument_group(
        "checkpoints of the real world", "as in BK-SDM: --prompts 30000 --schedulers PNDM --steps 25"
    )
    real.add_argument("--metrics", type=_metrics, default=(), metavar="NAMES", help="clip, fid, or clip,fid")
    real.add_argument("--captions", type=Path, metavar="CSV", help="with a column text, as BK-SDM's metadata.csv")
    real.add_argument("--references", type=Path, metavar="DIR", help="real pictures, for fid")
    options = parser.parse_args(argv)
    if not options.prompts:
        parser.error("--prompts: got 0; allowed: 1 or more")
    if options.against and (options.url or options.metrics):
        parser.error(
            "--against compares drawings of checkpoints in this process: neither --url nor --metrics goes with it"
        )
    if options.against_guidance is None:
        options.against_guidance = options.guidance
    if options.metrics and not options.captions:
        parser.error("--metrics needs --captions")
    if "fid" in options.metrics and not options.references:
        parser.error("--metrics fid needs --references")
    return options


def orders(options: argparse.Namespace) -> dict[str, list[Order]]:
    """The pictures to ask for, by kind, with the first scheduler.

    Raises InvalidParameter for what no server takes, and MetricError for captions that cannot be used.
    """
    from evaluation.metrics import read_captions  # noqa: PLC0415 - as in main
    from evaluation.orders import Order, held_out_orders  # noqa: PLC0415

    names = schedulers(options)
    for name, scale in product(names, (options.guidance, options.against_guidance)):
        Order("any", options.seed, name, options.steps, scale, size=options.size).parameters()
    manner = {"scheduler": names[0], "steps": options.steps, "guidance": options.guidance, "size": options.size}
    if options.metrics:
        captions = read_captions(options.captions, options.prompts)
        return {"captions": [Order(text, options.seed + i, **manner) for i, text in enumerate(captions)]}
    return {
        "shapes": held_out_orders(options.prompts, seed=options.seed, landscapes=False, **manner),
        "landscapes": held_out_orders(options.landscapes, seed=options.seed, landscapes=True, **manner),
    }


def schedulers(options: argparse.Namespace) -> list[str]:
    """The schedulers to use, by their documented names."""
    from tiny_sd_client import Scheduler  # noqa: PLC0415 - as in main

    return list(Scheduler) if options.schedulers == "all" else options.schedulers.split(",")


@contextmanager
def painter(options: argparse.Namespace) -> Iterator[tuple[Path | None, Pipeline | None, Painter]]:
    """Who makes the pictures; with the checkpoint and its pipeline, if it is in this process.

    Raises ServeError or EngineError for a checkpoint that cannot be used.
    """
    from evaluation.orders import by_pipeline, by_server  # noqa: PLC0415 - as in main

    if options.url:
        with by_server(options.url) as paint:
            yield None, None, paint
        return
    path = choose_checkpoint(options.checkpoint)
    if options.against:
        options.against = options.against.expanduser().resolve()
        check(options.against)
    pipeline = load(path, options)
    yield path, pipeline, by_pipeline(pipeline)


def load(path: Path, options: argparse.Namespace) -> Pipeline:
    """A checkpoint, in this process. Raises EngineError."""
    from tiny_sd_engine.pipeline import Pipeline  # noqa: PLC0415 - as in main

    return Pipeline.from_checkpoint(path, options.precision, options.device)


def follow(options: argparse.Namespace, paint: Painter, report: Report) -> Findings:
    """Ask for drawings and read them: with every scheduler, without guidance, and with negative prompts."""
    from evaluation.protocol import by_guidance, by_scheduler, forbid_colours  # noqa: PLC0415 - as in main
    from evaluation.report import Findings  # noqa: PLC0415

    names = schedulers(options)
    following = {kind: by_scheduler(paint, asked, names, report) for kind, asked in options.orders.items() if asked}
    checked = options.orders["shapes"][: options.checks]
    if not checked:
        return Findings(following)
    return Findings(following, by_guidance(paint, checked, report), forbid_colours(paint, checked, report))


def compare(
    options: argparse.Namespace, path: Path, pipeline: Pipeline, findings: Findings, report: Report
) -> list[Contender]:
    """The checkpoint of --against, asked for the same pictures, and the one at `path`, which has been evaluated."""
    from evaluation.comparison import measure_size, measure_speed  # noqa: PLC0415 - as in main
    from evaluation.orders import by_pipeline  # noqa: PLC0415
    from evaluation.protocol import by_scheduler  # noqa: PLC0415
    from evaluation.report import Contender  # noqa: PLC0415

    other = load(options.against, options)
    paint = by_pipeline(other)
    asked = {kind: orders for kind, orders in options.orders.items() if orders}
    first = schedulers(options)[:1]
    theirs = {
        kind: by_scheduler(paint, [replace(one, guidance=options.against_guidance) for one in orders], first, report)[0]
        for kind, orders in asked.items()
    }
    ours = {kind: many[0] for kind, many in findings.following.items()}
    seconds = measure_speed((other, pipeline), asked["shapes"][0], options.rounds)
    return [
        Contender(folder.name, measure_size(folder, options.size), seconds[i], series)
        for i, (folder, series) in enumerate(((options.against, theirs), (path, ours)))
    ]


def score(options: argparse.Namespace, paint: Painter, report: Report) -> Findings:
    """Ask for pictures of captions and score them."""
    from evaluation.metrics import ClipScore, FrechetDistance  # noqa: PLC0415 - as in main
    from evaluation.report import Findings  # noqa: PLC0415
    from tiny_sd_engine.device import select_device  # noqa: PLC0415

    device = select_device(options.device).torch_device
    scores = {}
    if "clip" in options.metrics:
        scores["CLIP score"] = ClipScore(device)
    if "fid" in options.metrics:
        scores["FID"] = FrechetDistance(options.references, device)
    asked = options.orders["captions"]
    for done, (order, pixels) in enumerate(zip(asked, paint(asked), strict=True), 1):
        for one in scores.values():
            one.add(order.prompt, pixels)
        report("captions", done, len(asked))
    return Findings(scores={name: one.value() for name, one in scores.items()})


def write(findings: Findings, circumstances: dict[str, str], out: Path) -> None:
    """Print the report; write it, the single pictures' readings and the contact sheets to `out`."""
    from evaluation.report import markdown, to_json  # noqa: PLC0415 - as in main
    from evaluation.sheet import contact_sheet  # noqa: PLC0415

    out.mkdir(parents=True, exist_ok=True)
    text = markdown(findings, circumstances)
    (out / "report.md").write_text(text, encoding="utf-8")
    (out / "report.json").write_text(json.dumps(to_json(findings, circumstances), indent=1) + "\n", encoding="utf-8")
    for kind, many in findings.following.items():
        for series in many:
            name = f"{kind}-{series.name.lower().replace(' ', '-')}.jpg"
            contact_sheet(series.graded[:_ON_SHEET]).save(out / name, quality=90)
    print(text, end="")
    print(f"Report and sheets: {out}", file=sys.stderr)


def circumstances(options: argparse.Namespace, arguments: Sequence[str], path: Path | None) -> dict[str, str]:
    """How the pictures came about, for whoever reads the figures. path: the checkpoint, if it is in this process."""
    import torch  # noqa: PLC0415 - as in main

    from tiny_sd_engine.device import select_device  # noqa: PLC0415

    told = {
        "command": f"`{shlex.join(['tools/evaluate.py', *arguments])}`",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "pictures of": options.url or path.name,
        "manner": f"{options.size}x{options.size}, {options.steps} steps, guidance {options.guidance:g}",
        "seeds": f"from {options.seed} on, one a prompt",
    }
    if path:
        device = select_device(options.device, precision=options.precision)
        name = torch.cuda.get_device_name() if device.torch_device.type == "cuda" else "CPU"
        told["device"] = f"{name}, {str(device.dtype).removeprefix('torch.')}"
        told["load at the end"] = f"{os.getloadavg()[0]:.2f} (1-minute average, {os.cpu_count()} cores)"
    return told


@contextmanager
def progress() -> Iterator[Report]:
    """A bar on stderr for each series of pictures."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in tasks or bars.tasks[tasks[name]].finished:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)

        yield report


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a whole number, 0 or more")
    return int(text)


def _metrics(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in METRICS]:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}; allowed: {', '.join(METRICS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
