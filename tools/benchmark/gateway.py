"""What the REST gateway costs: the same picture over it and from Triton itself."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from benchmark.chart import Bars
from benchmark.contenders import BenchError, Peak, Picture, Setup, peak
from benchmark.figures import Spread, alternating, ratios
from benchmark.report import MEMORY_NOTE, Report, Table, memory_table, say, seconds, surcharge
from benchmark.served import serve
from tiny_sd_client.parameters import DOCUMENTED_SIZES, Parameters

_PATH = "/v1/tinysd1.5-txt2img"
_COMMAND = Path(sys.executable).with_name("tiny-sd-gateway")
_READY = re.compile(r"Playground: (\S+)#key=(\S+)\n")
_ANSWER_TIMEOUT_S = 3600


class Gateway:
    """The gateway's process, and a connection to it that stays open. See :func:`run`."""

    name = "gateway"

    def __init__(self, process: subprocess.Popen[str], url: str, key: str) -> None:
        self._process = process
        self._headers = {"x-api-key": key, "content-type": "application/json"}
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_ANSWER_TIMEOUT_S)

    def make(self, parameters: Parameters) -> Picture:
        """One picture by HTTP; its seconds are those that the caller waits. Raises :class:`BenchError`."""
        body = json.dumps(parameters.model_dump(mode="json"))
        start = time.perf_counter()
        self._connection.request("POST", _PATH, body, self._headers)
        answer = self._connection.getresponse()
        file = answer.read()
        taken = time.perf_counter() - start
        if answer.status != http.HTTPStatus.OK:
            raise BenchError(f"the gateway: {answer.status} {file.decode(errors='replace')}")
        return Picture(file, taken)

    def peaks(self) -> list[Peak]:
        """Peak memory of the gateway."""
        return [peak(self.name, self._process.pid)]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextmanager
def run(setup: Setup, triton: str) -> Iterator[Gateway]:
    """A gateway on a new SQLite database for as long as the block; ``triton``: the server's gRPC endpoint."""
    settings = {
        "TRITON_URL": f"grpc://{triton}",
        "PORT": "0",
        "SIZES": ",".join(map(str, {*DOCUMENTED_SIZES, setup.size})),
        "REQUESTS_PER_MINUTE": "1000000",
        "DEV_KEY_CREDITS": "1000000",
    }
    with tempfile.TemporaryDirectory() as data:
        environment = {**os.environ, "XDG_DATA_HOME": data}
        environment |= {f"TINY_SD_GATEWAY_{name}": value for name, value in settings.items()}
        log = Path(data, "log")
        with log.open("w") as stderr:
            process = subprocess.Popen([_COMMAND, "run"], env=environment, stdout=-1, stderr=stderr, text=True)
        try:
            assert process.stdout
            ready = next(filter(None, map(_READY.fullmatch, process.stdout)), None)
            if ready is None:
                raise BenchError(f"the gateway did not start:\n{log.read_text()}")
            gateway = Gateway(process, ready[1], ready[2])
            try:
                yield gateway
            finally:
                gateway.close()
        finally:
            process.terminate()
            process.communicate()


def overhead(setup: Setup, repeats: int) -> Report:
    """Triton by gRPC and the gateway by HTTP make the same picture, ``repeats`` times in turns."""
    with serve(setup, "Triton") as direct, run(setup, direct.url) as gateway:
        contenders = (direct, gateway)
        pictures: dict[str, list[Picture]] = {each.name: [] for each in contenders}
        for each in contenders:
            say(f"warm-up: {each.name}")
            each.make(setup.request(0))
        for number, each in alternating(contenders, repeats):
            # The text encoder keeps the prompt's embeddings for the second one, so each has prompts of its own.
            picture = each.make(setup.request(2 * number + (each is gateway)))
            say(f"round {number} of {repeats}: {each.name}: {picture.seconds:.3f} s")
            pictures[each.name].append(picture)
        same = setup.request(2 * repeats + 2)
        equal = direct.make(same).file == gateway.make(same).file
        peaks = [peak for each in contenders for peak in each.peaks()]
    taken = {name: [picture.seconds for picture in own] for name, own in pictures.items()}
    added = [above - below for above, below in zip(taken[gateway.name], taken[direct.name], strict=True)]
    rows = [[name, *Spread.of(own).cells(seconds)] for name, own in taken.items()]
    rows.append(["gateway - Triton", *Spread.of(added).cells(seconds)])
    ratio = Spread.of(ratios(taken[gateway.name], taken[direct.name])).cells(surcharge)
    return Report(
        title="What the gateway adds",
        tables=[
            Table(["", "seconds per picture", "from … to"], rows),
            Table(["", "median of the rounds", "from … to"], [["gateway / Triton - 1", *ratio]]),
            memory_table(peaks),
        ],
        notes=[
            "Unary gRPC to the ensemble, and HTTP to the gateway (v1, SQLite), which streams from Triton: each from "
            "the parameters to a PNG file at its client, over a connection that is open already. They take turns "
            "(A B, B A, …); every picture has a prompt and a seed of its own.",
            *(["Both give the same file for the same request."] if equal else []),
            MEMORY_NOTE,
        ],
        chart=Bars("seconds per picture", {"": {name: Spread.of(own) for name, own in taken.items()}}),
        measurements={"seconds": taken, "peaks": peaks},
        failures=[] if equal else ["the gateway's picture differs from Triton's"],
    )
