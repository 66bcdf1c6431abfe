#!/usr/bin/env python
"""Start the server, make a sheet of pictures with their prompts, or one picture, and stop the server again."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import serve
from local_server import LocalServer, ServeError
from local_server.checkpoint import VARIABLE, choose_checkpoint
from local_server.install import ROOT
from sheets import Cell, Layout, Paragraph, draw_sheet
from tiny_sd_client import Client, TinySDError
from tiny_sd_client.command.files import SUFFIXES

PROMPTS = (
    "a large white star on a green background",
    "a red sailing boat at sea at sunset",
    "two pink crosses on a blue background",
    "a pink balloon over green hills under a blue sky",
    "an orange ring on the right on a purple background",
    "a red sailing boat at sea at night",
    "a large yellow heart on a pink background",
    "three small white diamonds at the top on a black background",
    "a green house at sunset",
    "a small blue circle in the top right corner on an orange background",
    "a white tree on a green hill at night",
    "a yellow triangle at the bottom left on a blue background",
)
"""What the sheet shows: combinations of thing, colour and surroundings that the drawings hold out from training."""

LAYOUT = Layout(columns=4, side=384, gap=48, font_size=24, corner=12)
_LOOK_S = 0.5  # between two looks at how far the generations are


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 with pictures, 130 when interrupted, else 1."""
    options = parse_arguments(sys.argv[1:] if argv is None else argv)
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    sys.path[:0] = [str(ROOT / "engine"), str(ROOT / "client")]
    os.environ.update(serve.QUIET)
    try:
        checkpoint = choose_checkpoint(options.checkpoint)
        server = LocalServer(env={VARIABLE: str(checkpoint)})
        try:
            with console.status("starting Triton"):
                server.start()
            console.print(f"Triton serves {checkpoint}")
            options.out.parent.mkdir(parents=True, exist_ok=True)
            if options.prompt is None:
                make_sheet(server.grpc_url, PROMPTS, options.seed, options.out, console)
            else:
                make_picture(server.grpc_url, options.prompt, options.seed, options.out, console)
        finally:
            server.stop()
    except (ServeError, OSError, TinySDError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options, checked as far as no server is needed for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("prompt", nargs="?", help="make one picture of this; without it, the sheet")
    add("--seed", type=int, default=42, help="of every picture (default: %(default)s)")
    add("--checkpoint", type=Path, metavar="PATH", help=f"diffusers folder; else {VARIABLE}, else the built-in one")
    add("--out", type=_picture_file, default=ROOT / "output" / "demo.jpg", metavar="FILE", help=", ".join(SUFFIXES))
    return parser.parse_args(argv)


def make_sheet(url: str, prompts: Sequence[str], seed: int, out: Path, console: Console) -> None:
    """Have a picture of each prompt made, all of them at the same time, and write them on one sheet to `out`.

    url: the server's gRPC endpoint, host:port
    seed: the same for all, so that nothing but the prompts makes them differ
    """
    console.print(f"{len(prompts)} pictures at the same time; seconds from admission to answer:")
    began = time.perf_counter()
    cells = []
    with Client(f"grpc://{url}") as client, progress(client, len(prompts), console):
        # PNG, so that only the sheet loses something, if it is a JPEG.
        wanted = client.generate_many(prompts, concurrency=len(prompts), seed=seed, image_format="png")
        with closing(wanted) as generations:
            for made in generations:
                cells.append(Cell(made.images[0], [Paragraph(made.parameters.prompt)]))
                console.print(f"{made.timings.server:8.1f}  {made.parameters.prompt}")
    seconds = time.perf_counter() - began
    # Words and flat colours suffer from reduced colour resolution (JPEG's 4:2:0).
    draw_sheet(cells, LAYOUT).save(out, quality=90, subsampling="4:4:4")
    console.print(f"Sheet     {out}  (all in {seconds:.1f} s: {seconds / len(prompts):.1f} s a picture; seed {seed})")


def make_picture(url: str, prompt: str, seed: int, out: Path, console: Console) -> None:
    """Have one picture made and write it to `out`. url: the server's gRPC endpoint, host:port."""
    with Client(f"grpc://{url}") as client:
        made = client.generate(prompt, seed=seed, image_format=SUFFIXES[out.suffix.lower()])
    out.write_bytes(made.files[0])
    console.print(f"Picture   {out}  ({made.timings.total:.1f} s)")
    for name, value in made.parameters.picture().items():
        console.print(f"  {name:<20} {value}")


@contextmanager
def progress(client: Client, pictures: int, console: Console) -> Iterator[None]:
    """A bar while the block lasts, where there is a terminal, of all that the server has under way.

    Pictures that are made at the same time are finished nearly at the same time: their steps tell how far they are.
    """
    if not console.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
        task = bars.add_task("denoising", total=pictures)
        ended = Event()

        def watch() -> None:
            seen: set[str] = set()
            with suppress(TinySDError):  # who waits for the pictures hears of it
                while not ended.wait(_LOOK_S):
                    jobs = {job.job_id: job.step / job.steps for job in client.jobs()}
                    seen |= jobs.keys()
                    bars.update(task, completed=len(seen - jobs.keys()) + sum(jobs.values()))

        watcher = Thread(target=watch, name="demo-progress")
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def _picture_file(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a file in {', '.join(SUFFIXES)}")
    return path


if __name__ == "__main__":
    sys.exit(main())
