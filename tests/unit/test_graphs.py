"""Recorded U-Net calls tell what the U-Net tells. Here they are recorded on the CPU; what a GPU does is pretended."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tiny_sd_engine import graphs as graphs_module
from tiny_sd_engine.denoiser import Denoiser
from tiny_sd_engine.device import select_device
from tiny_sd_engine.flight import Task
from tiny_sd_engine.graphs import CudaCapture, Graphs, padded

USES = graphs_module._USES


class Unet:
    """Tells something of all that it is asked, and keeps how many rows it was called with."""

    config = SimpleNamespace(cross_attention_dim=6)

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(
        self, latents: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor, return_dict: bool
    ) -> tuple[torch.Tensor]:
        assert not return_dict
        self.calls.append(len(latents))
        return (latents * timesteps[:, None, None, None] + embeddings.mean((1, 2))[:, None, None, None],)


class Tape:
    """Records as a GPU does: what is replayed computes on the same tensors as when it was recorded."""

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.replays = 0

    def __call__(self, call: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
        output = call().clone()
        self.recorded.append(len(output))

        def replay() -> None:
            self.replays += 1
            output.copy_(call())

        return replay, output


def rows(count: int, edge: int = 4, tokens: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(count, 2, edge, edge), torch.rand(count), torch.randn(count, tokens, 6)


def call(graphs: Graphs, *inputs: torch.Tensor, times: int = 1) -> None:
    """Check that the answer is the U-Net's."""
    for _ in range(times):
        (told,) = graphs(*inputs, return_dict=False)
        (expected,) = Unet()(*inputs, return_dict=False)
        assert torch.equal(told, expected)


@pytest.fixture
def tape() -> Tape:
    return Tape()


@pytest.fixture
def graphs(tape: Tape) -> Graphs:
    return Graphs(Unet(), 16, tape)


def test_a_call_is_filled_up_by_a_row_or_by_less_than_a_fifth() -> None:
    assert [padded(count) for count in range(1, 9)] == [1, 2, 4, 4, 6, 6, 8, 8]
    assert sorted({padded(count) for count in range(1, 33)}) == [1, *range(2, 17, 2), 20, 24, 28, 32]
    for count in range(1, 200):
        assert padded(count) - count <= 1 or padded(count) - count < padded(count) / 5


def test_calls_of_a_kind_are_recorded_once_they_are_seen_to_come_often(graphs: Graphs, tape: Tape) -> None:
    call(graphs, *rows(3), times=USES - 1)
    assert tape.recorded == []
    call(graphs, *rows(3))
    assert tape.recorded == [4]
    replays = tape.replays
    for count in (4, 3, 4, 3, 3):
        call(graphs, *rows(count))
    assert (tape.recorded, tape.replays) == ([4], replays + 5)


def test_each_size_and_each_length_of_text_is_recorded_for_itself(graphs: Graphs, tape: Tape) -> None:
    for inputs in (rows(2), rows(2, edge=8), rows(2, tokens=9)):
        call(graphs, *inputs, times=USES)
    assert tape.recorded == [2, 2, 2]


def test_what_is_recorded_ahead_is_recorded_from_the_largest_on(graphs: Graphs, tape: Tape) -> None:
    graphs.record(*rows(16))
    assert tape.recorded == [16, 14, 12, 10, 8, 6, 4, 2, 1]
    for count in range(1, 17):
        call(graphs, *rows(count), times=USES)
    assert len(tape.recorded) == 9


def test_a_call_is_not_filled_up_beyond_the_most_rows_and_a_larger_one_is_left_as_it_is(tape: Tape) -> None:
    graphs = Graphs(Unet(), 5, tape)
    for count in (5, 7):
        call(graphs, *rows(count), times=USES)
    assert tape.recorded == [5, 7]


def test_a_call_that_computes_for_long_is_not_recorded(graphs: Graphs, tape: Tape) -> None:
    large = torch.zeros(3, 2, 256, 128), torch.zeros(3), torch.zeros(3, 3, 6)
    call(graphs, *large, times=2 * USES)
    call(graphs, *(each[:2] for each in large), times=USES)
    assert tape.recorded == [2]


def test_predictions_that_are_no_numbers_are_recorded_like_others(graphs: Graphs, tape: Tape) -> None:
    latents, timesteps, embeddings = rows(2)
    latents[0] = torch.nan
    for _ in range(USES):
        graphs(latents, timesteps, embeddings, return_dict=False)
    call(graphs, *rows(2))
    assert tape.replays > 1


def refused(_call: Callable[[], torch.Tensor]) -> Any:
    raise RuntimeError("operation not permitted when stream is capturing")


def blind(call: Callable[[], torch.Tensor]) -> Any:
    return lambda: None, call()


@pytest.mark.parametrize("capture", [refused, blind], ids=["refused", "blind to its input"])
def test_a_recording_that_fails_is_told_once_and_the_calls_are_made_without(
    capture: Any, caplog: pytest.LogCaptureFixture
) -> None:
    unet = Unet()
    graphs = Graphs(unet, 16, capture)
    call(graphs, *rows(2), times=5 * USES)
    assert [record.getMessage() for record in caplog.records] == [
        "U-Net calls of 2 rows are launched piece by piece, not as a graph"
    ]
    call(graphs, *rows(3), times=5 * USES)
    assert len(caplog.records) == 2
    assert set(unet.calls[-USES:]) == {3}, "nor filled up"


def test_a_graph_makes_room_for_others_once_it_has_long_not_been_used(
    graphs: Graphs, tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "_MOST_GRAPHS", 2)
    monkeypatch.setattr(graphs_module, "_IDLE_CALLS", 3 * USES)
    for count in (1, 2, 4):
        call(graphs, *rows(count), times=USES)
    assert tape.recorded == [1, 2], "the graphs that there are have been used of late"
    for _ in range(USES):
        call(graphs, *rows(1))
        call(graphs, *rows(4))
    assert tape.recorded == [1, 2, 4], "the one of two rows has not"
    call(graphs, *rows(2), times=USES - 1)
    call(graphs, *rows(1))
    assert len(graphs._graphs) == 2
    assert tape.recorded == [1, 2, 4]


def test_pictures_of_recorded_calls_are_those_that_requests_get_alone(checkpoint: Path, tape: Tape) -> None:
    denoiser = Denoiser(checkpoint, select_device("CPU", precision="fp32"), max_rows=6)
    single = copy.copy(denoiser)
    single._slabs, single._max_rows, single._jobs = weakref.WeakValueDictionary(), 1, {}
    denoiser._unet = Graphs(denoiser._unet, 6, tape)
    denoiser.warm_up(64, 64)
    assert tape.recorded == [6, 4, 2, 1]
    text = torch.randn(77, 48)
    tasks = [
        Task(text, -text, name, 5, scale, [3, 4], 64, 64)
        for name, scale in (("Euler a", 7.5), ("UniPC", 1.0), ("DDPM", 3.0))
    ]
    replays = tape.replays
    together, alone = (
        [each.job(i, lambda task=task: task) for i, task in enumerate(tasks)] for each in (denoiser, single)
    )
    denoiser.run_to_end(together)
    assert tape.replays > replays
    single.run_to_end(alone)
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours.latents(), theirs.latents(), rtol=0, atol=0.005)


class PretendCuda:
    """What recording needs of ``torch.cuda``; tells what was done, and on which stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: bool) -> None:
        self.log: list[str] = []
        self.on = "usual"
        self._failing = failing
        for name in ("device", "stream", "Stream", "CUDAGraph", "current_stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    class _Within:
        def __init__(self, enter: Callable[[], object], leave: Callable[[], object]) -> None:
            self._enter, self._leave = enter, leave

        def __enter__(self) -> None:
            self._enter()

        def __exit__(self, *_: object) -> None:
            self._leave()

    def device(self, device: torch.device) -> Any:
        return self._Within(lambda: self.log.append(f"on {device}"), lambda: self.log.append("back"))

    def stream(self, stream: Any) -> Any:
        return self._Within(lambda: setattr(self, "on", stream.name), lambda: setattr(self, "on", "usual"))

    def current_stream(self) -> Any:
        return self.Stream("usual")

    def Stream(self, name: str = "side") -> Any:  # noqa: N802 - torch's name
        return SimpleNamespace(name=name, wait_stream=lambda other: self.log.append(f"{name} waits for {other.name}"))

    def CUDAGraph(self) -> Any:  # noqa: N802
        return SimpleNamespace(replay=lambda: self.log.append("replayed"), pool=lambda: "the pool of the first")

    def graph(self, _graph: Any, pool: Any, stream: Any, capture_error_mode: str) -> Any:
        assert (stream.name, capture_error_mode) == ("side", "thread_local")

        def leave() -> None:
            # As torch's does, it leaves its stream the current one where it fails.
            if self._failing:
                self.on = "side"
                raise RuntimeError("capture failed")
            self.log.append("recorded")

        return self._Within(lambda: self.log.append(f"recording in {pool}"), leave)


def test_on_a_gpu_calls_are_recorded_on_a_stream_of_their_own_in_one_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = PretendCuda(monkeypatch, failing=False)
    capture = CudaCapture(torch.device("cuda", 1))

    def called() -> torch.Tensor:
        cuda.log.append(f"called on {cuda.on}")
        return torch.zeros(1)

    for pool in ("None", "the pool of the first"):
        cuda.log.clear()
        replay, _ = capture(called)
        replay()
        assert cuda.log == [
            "on cuda:1",
            "side waits for usual",
            *["called on side"] * 2,
            f"recording in {pool}",
            "called on side",
            "recorded",
            "usual waits for side",
            "back",
            "replayed",
        ]


def test_a_recording_that_fails_leaves_the_gpus_usual_stream_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = PretendCuda(monkeypatch, failing=True)
    with pytest.raises(RuntimeError, match="capture failed"):
        CudaCapture(torch.device("cuda", 1))(lambda: torch.zeros(1))
    assert cuda.on == "usual"
