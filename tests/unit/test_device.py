"""Which device and precision the networks get, and how many threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tiny_sd_engine import device as device_module
from tiny_sd_engine.device import Device, limit_threads, select_device
from tiny_sd_engine.errors import EngineError

GPU = Device(torch.device("cuda", 0), torch.float16)
CPU = Device(torch.device("cpu"), torch.float32)


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def threads_afterwards() -> Iterator[None]:
    """Gives torch its threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def says(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **capabilities})


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize("kind", ["auto", "GPU"])
def test_a_gpu_is_taken_where_there_is_one_and_computes_in_half_precision(kind: str) -> None:
    device = select_device(kind, device_id=1)
    assert device == Device(torch.device("cuda", 1), torch.float16)


@pytest.mark.usefixtures("with_gpu")
def test_a_cpu_instance_stays_on_the_cpu_even_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch)
    assert select_device("CPU") == CPU


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("kind", ["auto", "CPU"])
def test_without_a_gpu_the_cpu_is_taken(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch)
    assert select_device(kind) == CPU


@pytest.mark.usefixtures("without_gpu")
def test_a_gpu_that_is_not_there_is_an_error_with_a_way_out() -> None:
    with pytest.raises(EngineError, match="no CUDA device; install"):
        select_device("GPU")


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({}, torch.float32),
        ({"avx512_f": True}, torch.float32),
        ({"amx_bf16": False, "avx512_bf16": False}, torch.float32),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
    ],
)
def test_a_cpu_computes_in_bfloat16_only_where_its_hardware_does(
    capabilities: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, **capabilities)
    assert select_device("CPU").dtype == dtype


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize("kind", ["CPU", "GPU"])
@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_precision_that_is_asked_for_is_what_is_used(kind: str, precision: str, dtype: torch.dtype) -> None:
    assert select_device(kind, precision=precision).dtype == dtype


@pytest.mark.parametrize("options", [{"kind": "gpu"}, {"precision": "fp8"}])
def test_another_kind_or_precision_is_refused_with_what_is_allowed(options: dict[str, str]) -> None:
    with pytest.raises(EngineError, match="allowed: auto, "):
        select_device(**options)


def test_this_torch_knows_the_capabilities_that_are_asked_for() -> None:
    """Else every CPU would quietly compute in float32."""
    capabilities = torch.cpu.get_capabilities()
    if capabilities["architecture"] == "x86_64":
        assert {"amx_bf16", "avx512_bf16"} <= set(capabilities)


def test_a_gpu_shares_calls_and_a_cpu_does_not() -> None:
    assert GPU.mixes_requests
    assert min(GPU.unet_rows, GPU.pixels_per_decode, GPU.windows_per_encode) > 1
    assert not CPU.mixes_requests
    assert (CPU.unet_rows, CPU.pixels_per_decode, CPU.windows_per_encode) == (1, 1, 1)


@pytest.mark.parametrize(
    ("content", "cpus"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("50000 100000\n", 1),
        ("1000 100000", 1),
        ("400000 100000\n", 4),
        ("30000 10000\n", 3),
    ],
)
def test_a_containers_quota_counts_in_whole_cpus(content: str, cpus: int, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert device_module._cpu_quota(tmp_path / "cpu.max") == cpus


@pytest.mark.parametrize("content", ["max 100000\n", "", "200000", "nonsense 100000", "200000 0", None])
def test_without_a_quota_that_can_be_read_all_cores_count(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "cpu.max").write_text(content)
    assert device_module._cpu_quota(tmp_path / "cpu.max") == os.cpu_count()


@pytest.mark.usefixtures("threads_afterwards")
def test_the_operators_number_of_threads_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_cpu_quota", lambda: 1)
    assert limit_threads(3) == 3
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("threads_afterwards")
@pytest.mark.parametrize(("threads", "quota", "expected"), [(4, 2, 2), (2, 4, 2), (1, 8, 1), (3, 3, 3)])
def test_else_the_quota_bounds_the_threads(
    threads: int, quota: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(threads)
    monkeypatch.setattr(device_module, "_cpu_quota", lambda: quota)
    assert limit_threads() == expected
    assert torch.get_num_threads() == expected
