"""The third contender: our engine behind a real Triton on this machine, and what calls it."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from benchmark.contenders import BenchError, Peak, Picture, Setup, peak
from benchmark.figures import process_name, read_metrics
from local_server import LocalServer
from tiny_sd_client.parameters import DOCUMENTED_SIZES, Parameters

_ANSWER_TIMEOUT_S = 3600  # far beyond any picture, so that a lost request ends the run
_DTYPES: dict[type, type] = {str: np.object_, bool: np.bool_, int: np.int32, float: np.float32}

Ask = Callable[[Parameters], Picture]


class Served:
    """The engine behind Triton, with a client of its own. See :func:`serve`."""

    def __init__(self, name: str, server: LocalServer, ask: Ask) -> None:
        self.name = name
        self.make = ask
        self._server = server

    @property
    def url(self) -> str:
        """Triton's gRPC endpoint, host:port."""
        return self._server.grpc_url

    def connect(self) -> AbstractContextManager[Ask]:
        """Another client, for another thread."""
        return _connect(self._server.grpc_url)

    def make_together(self, requests: Sequence[Sequence[Parameters]]) -> float:
        """Seconds until all callers are done. Each has a list of requests, which it sends one after another."""
        with ExitStack() as stack, ThreadPoolExecutor(len(requests)) as pool:
            callers = [stack.enter_context(self.connect()) for _ in requests]
            start = time.perf_counter()
            list(pool.map(lambda ask, own: [ask(each) for each in own], callers, requests))
            return time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """The U-Net stage's metrics by name."""
        connection = http.client.HTTPConnection(self._server.metrics_url, timeout=60)
        try:
            connection.request("GET", "/metrics")
            return read_metrics(connection.getresponse().read().decode(), model="unet")
        finally:
            connection.close()

    def working(self) -> bool:
        """Whether a picture is being made."""
        return self.metrics()["tiny_sd_jobs_in_flight"] > 0

    def peaks(self) -> list[Peak]:
        """Peak memory of Triton and of each model's process."""
        processes = self._server.process_tree()
        return [peak(f"{self.name}: {process_name(process.cmdline())}", process.pid) for process in processes]


@contextmanager
def serve(setup: Setup, name: str = "served", *flags: str, server: type[LocalServer] = LocalServer) -> Iterator[Served]:
    """A server for as long as the block, with ``flags`` of Triton's besides the usual ones."""
    environment = {
        "TINY_SD_CHECKPOINT": str(setup.checkpoint),
        "TINY_SD_PRECISION": setup.precision,
        "TINY_SD_SIZES": ",".join(map(str, {*DOCUMENTED_SIZES, setup.size})),
    }
    with (
        server(env=environment, extra_args=flags) as running,
        _connect(running.grpc_url) as ask,
    ):
        yield Served(name, running, ask)


@contextmanager
def _connect(url: str) -> Iterator[Ask]:
    """A plain Triton client, for one thread, as the function that asks it for a picture."""
    with InferenceServerClient(url) as client:
        client.is_server_ready()  # connects
        yield partial(_ask, client)


def _ask(client: InferenceServerClient, parameters: Parameters) -> Picture:
    """One picture by unary gRPC; its seconds are those that the caller waits. Raises :class:`BenchError`."""
    start = time.perf_counter()
    try:
        answer = client.infer("tiny_sd", _inputs(parameters), client_timeout=_ANSWER_TIMEOUT_S)
    except InferenceServerException as error:
        raise BenchError(f"the served engine: {error}") from error
    file = answer.as_numpy("image")[0, 0]
    return Picture(file, time.perf_counter() - start)


def _inputs(parameters: Parameters) -> list[InferInput]:
    """The parameters as tensors, all of shape [1, 1]."""
    inputs = []
    for name, value in parameters.model_dump(mode="json").items():
        dtype = np.int64 if name == "seed" else _DTYPES[type(value)]
        array = np.array([[value.encode() if isinstance(value, str) else value]], dtype)
        tensor = InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array))
    return inputs
