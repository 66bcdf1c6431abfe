"""The U-Net's calls as CUDA graphs: recorded once, then launched as one, where launching takes as long as computing.

A recorded call has its rows at fixed places and in a fixed number. So the rows are copied there, and a call of fewer
rows leaves the last of them as they are; rows have no effect on each other.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tiny_sd_engine.errors import EngineError

log = logging.getLogger(__name__)

Capture = Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], object], torch.Tensor]]
"""Records a call; gives what runs it again, and the tensor that its result is in each time."""

_MOST_GRAPHS = 32
_IDLE_CALLS = 10_000
"""Calls that a graph is not used in before it makes room for another: recording takes as long as hundreds of calls."""
_USES = 8
"""Calls of one kind before that is recorded."""
_MOST_LATENTS = 16 * 64 * 64
"""Latents (h * w, of all rows) of a recorded call. Larger ones compute for much longer than their launch takes, and the
memory they compute in would stay taken."""
_TOLERANCE = 0.05
"""Between two ways of making the same call in half precision; a prediction's variance is about 1."""

_Key = tuple[torch.Size, torch.Size, int]
"""Shape of a row's latents, of its text; rows."""


@dataclass(frozen=True)
class _Graph:
    inputs: list[torch.Tensor]
    output: torch.Tensor
    replay: Callable[[], object]

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        for own, given in zip(self.inputs, inputs, strict=True):
            own[: len(given)].copy_(given)
        self.replay()
        return self.output[: len(inputs[0])]


class Graphs:
    """A U-Net to call like the one it is made of. Not safe for several threads.

    What it tells is to be used before the next call, which overwrites it.
    """

    def __init__(self, unet: Any, most_rows: int, capture: Capture) -> None:
        """``most_rows``: a call of fewer is not filled up beyond them."""
        self.config = unet.config
        self._unet = unet
        self._most_rows = most_rows
        self._capture = capture
        self._graphs: OrderedDict[_Key, _Graph] = OrderedDict()  # the one not used for longest first
        self._last_call: dict[_Key, int] = {}
        self._refused: set[_Key] = set()
        self._uses: Counter[_Key] = Counter()
        self._calls = 0

    def __call__(
        self, latents: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor, *, return_dict: Literal[False]
    ) -> tuple[torch.Tensor, ...]:
        """As the U-Net's own."""
        inputs = (latents, timesteps, embeddings)
        graph = self._find(inputs)
        return (graph(inputs),) if graph else self._call(inputs)

    def record(self, latents: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor) -> None:
        """Record calls of up to so many rows of these shapes, the largest first: the others find their memory there."""
        inputs = (latents, timesteps, embeddings)
        sizes = {self._key([each[:rows] for each in inputs])[-1] for rows in range(1, len(latents) + 1)}
        for rows in sorted(sizes, reverse=True):
            self._record([each[:rows] for each in inputs])

    def _find(self, inputs: Sequence[torch.Tensor]) -> _Graph | None:
        key = self._key(inputs)
        self._calls += 1
        self._uses[key] += 1
        if key not in self._graphs and self._uses[key] >= _USES:
            self._record(inputs)
        if key in self._graphs:
            self._graphs.move_to_end(key)
            self._last_call[key] = self._calls
        return self._graphs.get(key)

    def _key(self, inputs: Sequence[torch.Tensor]) -> _Key:
        latents, _, embeddings = inputs
        rows = max(len(latents), min(padded(len(latents)), self._most_rows))
        return latents.shape[1:], embeddings.shape[1:], rows

    def _record(self, inputs: Sequence[torch.Tensor]) -> None:
        """Record calls of this kind, if that is worth it and there is room. If it fails, it is not tried again."""
        key = self._key(inputs)
        rows = key[-1]
        if key in self._refused or rows * inputs[0][0, 0].numel() > _MOST_LATENTS or not self._make_room():
            return
        own = [_room(each, rows) for each in inputs]
        try:
            replay, output = self._capture(lambda: self._call(own)[0])
            graph = _Graph(own, output, replay)
            _check(graph(inputs), self._call(own)[0][: len(inputs[0])])
        except Exception:  # whatever it is, the U-Net can be called without
            log.warning("U-Net calls of %d rows are launched piece by piece, not as a graph", rows, exc_info=True)
            self._refused.add(key)
        else:
            self._graphs[key] = graph
            self._last_call[key] = self._calls

    def _make_room(self) -> bool:
        if len(self._graphs) < _MOST_GRAPHS:
            return True
        oldest = next(iter(self._graphs))
        if self._calls - self._last_call[oldest] < _IDLE_CALLS:
            return False
        del self._graphs[oldest], self._last_call[oldest], self._uses[oldest]
        return True

    def _call(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        told: tuple[torch.Tensor, ...] = self._unet(*inputs, return_dict=False)
        return told


def padded(rows: int) -> int:
    """Rows of the recorded call for a call of so many: 1, 2, 4, 6, …, 16, 20, 24, 28, 32, 40, ….

    Powers of two alone would be fewer, but up to half of the device's work would be for nothing.
    """
    grain = max(2, 2 ** ((rows - 1).bit_length() - 3))
    return rows if rows == 1 else -(-rows // grain) * grain


def _room(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Zeros like ``count`` such rows; latents, the only ones of four dimensions, channels last."""
    room = torch.zeros(count, *rows.shape[1:], dtype=rows.dtype, device=rows.device)
    return room.to(memory_format=torch.channels_last) if room.ndim == 4 else room


def _check(told: torch.Tensor, expected: torch.Tensor) -> None:
    # The graph was recorded on zeros, so one that does not look at its inputs is found out. NaN may be right: of a job
    # that has no picture any more.
    if not torch.allclose(told, expected, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
        raise EngineError("its predictions are not those of the U-Net")


class CudaCapture:
    """Records calls on one GPU. All compute in the same memory: no two of them run at a time."""

    _WARM_UPS = 2  # libraries choose kernels and take memory in the first calls, which must not be recorded

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._first: torch.cuda.CUDAGraph | None = None  # the memory is there for as long as a graph that has it

    def __call__(self, call: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
        """See ``Capture``."""
        with torch.cuda.device(self._device):
            usual = torch.cuda.current_stream()
            # Always the same: libraries keep memory for each stream that they were used on.
            stream = self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(usual)
            graph = torch.cuda.CUDAGraph()
            pool = None if self._first is None else self._first.pool()
            # This brings the usual stream back, which torch.cuda.graph does not where a recording fails.
            with torch.cuda.stream(stream):
                for _ in range(self._WARM_UPS):
                    call()
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    output = call()
            usual.wait_stream(stream)
            self._first = self._first or graph
        return graph.replay, output
