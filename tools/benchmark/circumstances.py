"""Where and how a benchmark ran, for whoever reads its figures."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path

import diffusers
import torch

from benchmark.contenders import Setup
from tiny_sd_engine.device import limit_threads, select_device


def circumstances(setup: Setup, repeats: int, command: str) -> dict[str, str]:
    """By name. To be called before anything runs: it tells how busy the machine is by itself."""
    device = select_device(setup.device, precision=setup.precision)
    on_gpu = setup.device == "GPU"
    return {
        "command": f"`{command}`",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "checkpoint": setup.checkpoint.name,
        "picture": f"{setup.size}x{setup.size}, {setup.steps} steps of dpmpp_2m, guided; {repeats} rounds",
        "precision": f"engine {_name(device.dtype)}; diffusers {'float16' if on_gpu else 'float32'}",
        "GPU": torch.cuda.get_device_name() if on_gpu else "none used",
        "CPU": f"{_cpu_model()}; {limit_threads()} threads for torch",
        "OpenMP": f"OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')}",
        "bf16 in the CPU": _bf16_hardware(),
        "load before": f"{os.getloadavg()[0]:.2f} (1-minute average, {os.cpu_count()} cores)",
        "versions": f"torch {torch.__version__}, diffusers {diffusers.__version__}, Python {platform.python_version()}",
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    found = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _bf16_hardware() -> str:
    able = torch.cpu.get_capabilities()
    return ", ".join(name for name in ("amx_bf16", "avx512_bf16") if able.get(name)) or "no"
