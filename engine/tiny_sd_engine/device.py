"""Where the networks run: device, precision, threads, and how much one call may hold."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tiny_sd_engine import memory
from tiny_sd_engine.errors import EngineError
from tiny_sd_engine.settings import PRECISIONS

memory.use_large_pages()

_FEW_CHANNELS = 320  # with 128, a U-Net's call takes a third less on one thread than on two; with 1,280, twice as long
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Device:
    """A device with the precision its networks compute in.

    On a CPU a call holds the rows of one image (or one prompt window) only: more rows buy no speed there, and the
    kernels round differently for other row counts, so an image's bytes would depend on its neighbours.
    """

    torch_device: torch.device
    dtype: torch.dtype

    @property
    def mixes_requests(self) -> bool:
        """Whether one network call may hold rows of several images."""
        return self.torch_device.type == "cuda"

    @property
    def records_calls(self) -> bool:
        """Whether network calls may be recorded as CUDA graphs."""
        return self.torch_device.type == "cuda"

    @property
    def unet_rows(self) -> int:
        """Rows of one U-Net call. An image is never split: one image may exceed the bound by itself."""
        return 16 if self.mixes_requests else 1

    @property
    def pixels_per_decode(self) -> int:
        """Pixels of one VAE call of several images; the VAE's activations are the largest of the pipeline."""
        return 4 * 512 * 512 if self.mixes_requests else 1

    @property
    def windows_per_encode(self) -> int:
        """Prompt windows of one text encoder call."""
        return 64 if self.mixes_requests else 1

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor from the CPU, there. The CPU does not wait for it: that would be for all that was asked before."""
        if self.torch_device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.torch_device, non_blocking=True)

    def pace(self) -> Pace:
        """Of a loop of calls that begins."""
        return Pace(self.torch_device)

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""
        if self.torch_device.type == "cuda":
            torch.cuda.synchronize(self.torch_device)


class Pace:
    """Keeps a loop one call ahead of a GPU, so that this always has work, and the loop's clock tells how long it takes.

    On a CPU a call has ended when it returns.
    """

    def __init__(self, torch_device: torch.device) -> None:
        self._torch_device = torch_device
        self._launched: torch.cuda.Event | None = None

    def keep(self) -> None:
        """A call has been launched: wait for the end of the one before."""
        if self._torch_device.type != "cuda":
            return
        before, self._launched = self._launched, torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._launched.record(torch.cuda.current_stream(self._torch_device))
        if before:
            before.synchronize()


def select_device(kind: str = "auto", device_id: int = 0, precision: str = "auto") -> Device:
    """The device for Triton's instance ``kind`` (``GPU``, ``CPU``; or ``auto``: a GPU where there is one).

    ``precision`` is ``auto``, ``fp32``, ``bf16`` or ``fp16``. Raises :class:`EngineError` for another kind or
    precision, and for a GPU that torch cannot use.
    """
    if kind not in ("auto", "GPU", "CPU"):
        raise EngineError(f"device {kind!r}; allowed: auto, GPU, CPU")
    if precision not in PRECISIONS:
        raise EngineError(f"precision {precision!r}; allowed: {', '.join(PRECISIONS)}")
    if kind == "auto":
        kind = "GPU" if torch.cuda.is_available() else "CPU"
    if kind == "GPU" and not torch.cuda.is_available():
        raise EngineError(
            "a GPU instance was asked for, but this torch has no CUDA device; install a CUDA build of torch"
        )
    device = torch.device("cuda", device_id) if kind == "GPU" else torch.device("cpu")
    dtype = _automatic_dtype(device) if precision == "auto" else _DTYPES[precision]
    return Device(device, dtype)


def _automatic_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.float16
    processor = torch.cpu.get_capabilities()
    return torch.bfloat16 if processor.get("amx_bf16") or processor.get("avx512_bf16") else torch.float32


def limit_threads(threads: int | None = None) -> int:
    """Let torch use ``threads`` CPU threads, or as many as the container's CPU quota grants. Returns the number."""
    count = threads or min(torch.get_num_threads(), _cpu_quota())
    torch.set_num_threads(count)
    return count


@contextmanager
def threads_for(channels: int) -> Iterator[None]:
    """Inside the block torch has one CPU thread for a network whose widest layer has few ``channels``.

    Its operations are done sooner than a second thread is awake, and other processes have the core.
    """
    usual = torch.get_num_threads()
    torch.set_num_threads(1 if channels < _FEW_CHANNELS else usual)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def _cpu_quota(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """CPUs that cgroup v2 grants, at least 1; torch itself sees the machine's cores only."""
    cores = os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        return cores if quota == "max" else max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return cores
