"""Who makes the pictures: diffusers and our engine, each in a process of its own, and our engine behind a real Triton.

A contender sleeps, without using the CPU, while another one works.
"""

from __future__ import annotations

import http.client
import io
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from benchmark.figures import high_water_bytes, process_name, read_metrics
from local_server import LocalServer
from tiny_sd_client.parameters import Parameters, parse

_PNG_COMPRESSION = 1  # the engine's own, so that diffusers' files take as long to write
_ANSWER_TIMEOUT_S = 3600  # far beyond any picture, so that a lost request ends the run
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

        Each has a prompt of its own: one that came before would be answered from Triton's response cache.
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


Make = Callable[[Parameters], bytes]


def load_diffusers(setup: Setup) -> Make:
    """diffusers' own pipeline, used as its documentation says; a call gives a PNG file."""
    import diffusers  # noqa: PLC0415 -- only this contender's process holds it
    import torch  # noqa: PLC0415

    diffusers.logging.disable_progress_bar()
    on_gpu = setup.device == "GPU"
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        setup.checkpoint,
        dtype=torch.float16 if on_gpu else torch.float32,
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to("cuda" if on_gpu else "cpu")

    def make(parameters: Parameters) -> bytes:
        image = pipeline(
            prompt=parameters.prompt,
            negative_prompt=parameters.negative_prompt,
            num_inference_steps=parameters.num_inference_steps,
            guidance_scale=parameters.guidance_scale,
            width=parameters.img_width,
            height=parameters.img_height,
            generator=torch.Generator().manual_seed(parameters.seed),
        ).images[0]
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=_PNG_COMPRESSION)
        return file.getvalue()

    return make


def load_engine(setup: Setup) -> Make:
    """Our engine in process; a call gives a PNG file."""
    from tiny_sd_engine.pipeline import Pipeline  # noqa: PLC0415 -- only this contender's process holds torch

    pipeline = Pipeline.from_checkpoint(setup.checkpoint, precision=setup.precision, device=setup.device)
    return lambda parameters: pipeline.generate(parameters).images[0]


class Worker:
    """A contender in a process of its own, which waits for requests at a pipe.

    Raises :class:`BenchError` if the process dies.
    """

    def __init__(self, name: str, load: Callable[[Setup], Make], setup: Setup) -> None:
        self.name = name
        self._gpu_bytes: int | None = None
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, load, setup), name=name, daemon=True)
        self._process.start()
        theirs.close()  # so that a dead process reads as the end of the pipe

    def make(self, parameters: Parameters) -> Picture:
        """One picture; its seconds are those inside the worker's process."""
        try:
            self._connection.send(parameters)
            picture: Picture = self._connection.recv()
        except (EOFError, OSError) as error:
            raise BenchError(f"{self.name}: its process died; its last words are above") from error
        self._gpu_bytes = picture.gpu_bytes
        return picture

    def peaks(self) -> list[Peak]:
        """Peak memory of the process."""
        return [Peak(self.name, high_water_bytes(_status(self._process.pid)), self._gpu_bytes)]

    def __enter__(self) -> Worker:
        """It was started by its constructor and may still be loading."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, at once if it is at work."""
        self._connection.close()
        self._process.join(_LEAVE_TIMEOUT_S)
        self._process.kill()
        self._process.join()


def _work(connection: Connection, load: Callable[[Setup], Make], setup: Setup) -> None:
    """A worker's whole life: until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    import torch  # noqa: PLC0415 -- not in the parent, which imports this module too

    make = load(setup)
    while True:
        try:
            parameters = connection.recv()
        except EOFError:
            return
        start = time.perf_counter()
        file = make(parameters)
        seconds = time.perf_counter() - start
        connection.send(Picture(file, seconds, torch.cuda.max_memory_allocated() if setup.device == "GPU" else None))


class Caller:
    """A plain Triton client of the served pipeline, for one thread."""

    def __init__(self, url: str) -> None:
        self._client = InferenceServerClient(url)
        self._client.is_server_ready()  # connects

    def make(self, parameters: Parameters) -> Picture:
        """One picture by unary gRPC; its seconds are those that the caller waits. Raises :class:`BenchError`."""
        start = time.perf_counter()
        try:
            answer = self._client.infer("tiny_sd", _inputs(parameters), client_timeout=_ANSWER_TIMEOUT_S)
        except InferenceServerException as error:
            raise BenchError(f"served: {error}") from error
        file = answer.as_numpy("image")[0, 0]
        return Picture(file, time.perf_counter() - start)

    def __enter__(self) -> Caller:
        """Connected already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._client.close()


class Served:
    """The engine behind Triton on this machine. ``config`` names an alternative configuration of the models."""

    def __init__(self, setup: Setup, name: str = "served", config: str | None = None) -> None:
        self.name = name
        environment = {
            "TINY_SD_CHECKPOINT": str(setup.checkpoint),
            "TINY_SD_PRECISION": setup.precision,
            "TINY_SD_SIZES": str(setup.size),
        }
        arguments = [f"--model-config-name={config}"] if config else []
        self._server = LocalServer(env=environment, extra_args=arguments)

    def caller(self) -> Caller:
        """A new client."""
        return Caller(self._server.grpc_url)

    def make(self, parameters: Parameters) -> Picture:
        """One picture, from the one client that this contender has of its own."""
        return self._caller.make(parameters)

    def make_together(self, requests: Sequence[Sequence[Parameters]]) -> float:
        """Seconds until all callers are done. Each has a list of requests, which it sends one after another."""
        with ExitStack() as stack, ThreadPoolExecutor(len(requests)) as pool:
            callers = [stack.enter_context(self.caller()) for _ in requests]
            start = time.perf_counter()
            list(pool.map(lambda caller, own: [caller.make(each) for each in own], callers, requests))
            return time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """The U-Net stage's metrics by name."""
        connection = http.client.HTTPConnection(self._server.metrics_url, timeout=60)
        try:
            connection.request("GET", "/metrics")
            return read_metrics(connection.getresponse().read().decode(), model="unet")
        finally:
            connection.close()

    def peaks(self) -> list[Peak]:
        """Peak memory of Triton and of each model's process."""
        return [
            Peak(f"{self.name}: {process_name(process.cmdline())}", high_water_bytes(_status(process.pid)))
            for process in self._server.process_tree()
        ]

    def __enter__(self) -> Served:
        """Start the server and connect."""
        self._server.start()
        try:
            self._caller = self.caller()
        except BaseException:
            self._server.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._caller.__exit__()
        self._server.stop()


def _inputs(parameters: Parameters) -> list[InferInput]:
    """The parameters as tensors, all of shape [1, 1]."""
    dtypes: dict[type, Any] = {str: np.object_, bool: np.bool_, int: np.int32, float: np.float32}
    inputs = []
    for name, value in parameters.model_dump(mode="json").items():
        dtype = np.int64 if name == "seed" else dtypes[type(value)]
        array = np.array([[value.encode() if isinstance(value, str) else value]], dtype)
        tensor = InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array))
    return inputs


def _status(pid: int | None) -> str:
    return Path(f"/proc/{pid}/status").read_text()
