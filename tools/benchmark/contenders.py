"""What every contender is given and gives, our engine, and the processes that contenders have to themselves.

A contender sleeps, without using the CPU, while another one works.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmark.figures import high_water_bytes
from tiny_sd_client.parameters import Parameters, parse

_LEAVE_TIMEOUT_S = 5


class BenchError(Exception):
    """A contender did not get to the end."""


@dataclass(frozen=True)
class Setup:
    """What all contenders are given."""

    checkpoint: Path
    device: str
    """GPU or CPU."""
    precision: str
    """Of the engine, in process and served: auto, fp32, bf16 or fp16."""
    size: int
    """Width and height in pixels."""
    steps: int

    def request(self, number: int, steps: int | None = None) -> Parameters:
        """The request with this number, the same for all contenders.

        Each has a prompt of its own: the embeddings of one that came before would be there already.
        """
        values = {
            "prompt": f"a watercolour of a lighthouse at dusk, number {number}",
            "negative_prompt": f"blurry, number {number}",
            "scheduler": "dpmpp_2m",
            "num_inference_steps": steps or self.steps,
            "seed": number,
            "img_width": self.size,
            "img_height": self.size,
            "base64": False,
            "image_format": "png",
        }
        return parse(values, sizes=(self.size,))


@dataclass(frozen=True)
class Picture:
    """A finished picture and what it took."""

    file: bytes
    """PNG."""
    seconds: float
    gpu_bytes: int | None = None
    """Most GPU memory that torch held in the contender's process so far; None where it is not known."""


@dataclass(frozen=True)
class Peak:
    """The most memory that a process held so far, loading included."""

    process: str
    resident_bytes: int
    gpu_bytes: int | None = None


def peak(name: str, pid: int, gpu_bytes: int | None = None) -> Peak:
    """Of the running process ``pid``; what torch held on a GPU only the process itself knows."""
    return Peak(name, high_water_bytes(Path(f"/proc/{pid}/status").read_text()), gpu_bytes)


Make = Callable[[Parameters], bytes]
"""Gives a PNG file."""


@dataclass(frozen=True)
class Ready:
    """A contender that has loaded."""

    make: Make
    how: str = ""
    """Its settings in words, where there is more to say than its name."""


def load_engine(setup: Setup) -> Ready:
    """Our engine in process."""
    from tiny_sd_engine.pipeline import Pipeline  # noqa: PLC0415 -- only this contender's process holds torch

    pipeline = Pipeline.from_checkpoint(setup.checkpoint, precision=setup.precision, device=setup.device)
    return Ready(lambda parameters: pipeline.generate(parameters).images[0])


class Worker:
    """A contender in a process of its own, which waits for requests at a pipe. See :func:`worker`."""

    def __init__(self, name: str, pid: int, connection: Connection) -> None:
        """Waits until the process is ready. Raises :class:`BenchError` if it cannot be."""
        self.name = name
        self._pid = pid
        self._connection = connection
        self._gpu_bytes: int | None = None
        self.how: str = self._receive()

    def make(self, parameters: Parameters) -> Picture:
        """One picture; its seconds are those inside the process. Raises :class:`BenchError` if the process dies."""
        with suppress(OSError):  # a dead process shows in the answer
            self._connection.send(parameters)
        picture: Picture = self._receive()
        self._gpu_bytes = picture.gpu_bytes
        return picture

    def peaks(self) -> list[Peak]:
        """Peak memory of the process."""
        return [peak(self.name, self._pid, self._gpu_bytes)]

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise BenchError(f"{self.name}: its process died; its last words are above") from error
        if isinstance(answer, BenchError):
            raise answer
        return answer


@contextmanager
def worker(name: str, load: Callable[[Setup], Ready], setup: Setup) -> Iterator[Worker]:
    """A process that makes pictures with what ``load`` gives, once it is ready; it ends with the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, load, setup), name=name, daemon=True)
    process.start()
    theirs.close()  # so that a dead process reads as the end of the pipe
    try:
        yield Worker(name, process.pid, ours)
    finally:
        ours.close()
        process.join(_LEAVE_TIMEOUT_S)
        process.kill()
        process.join()


def _work(connection: Connection, load: Callable[[Setup], Ready], setup: Setup) -> None:
    """A worker's whole life: until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    import torch  # noqa: PLC0415 -- not in the parent, which imports this module too

    try:
        ready = load(setup)
    except BenchError as error:
        connection.send(error)
        return
    connection.send(ready.how)
    while True:
        try:
            parameters = connection.recv()
        except EOFError:
            return
        start = time.perf_counter()
        file = ready.make(parameters)
        seconds = time.perf_counter() - start
        connection.send(Picture(file, seconds, torch.cuda.max_memory_allocated() if setup.device == "GPU" else None))
