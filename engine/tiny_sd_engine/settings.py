"""What the operator sets through the environment, read once. docs/configuration.md explains each."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tiny_sd_engine.errors import EngineError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEFAULT_SIZE = 512
"""Width and height in pixels of a picture whose caller names none."""


class SettingError(EngineError):
    """An environment variable has a value that cannot be used."""


@dataclass(frozen=True)
class Settings:
    """Settings of the machine; none of them changes what a caller may ask for, but ``sizes``."""

    checkpoint: Path
    precision: str = "auto"
    sizes: tuple[int, ...] = field(default=(512, 768, 1024))
    """Widths and heights in pixels that callers may ask for."""
    quantum_ms: float = 500.0
    """The longest that one ``execute`` of the U-Net denoises before it hands back to Triton, in milliseconds."""
    max_rows: int | None = None
    """Most rows of one U-Net call; None: chosen by the device."""
    evict_after_s: float = 30.0
    """Seconds after which a generation that Triton no longer asks for is dropped."""
    text_cache_mb: int = 256
    """MiB for the embeddings of late prompts."""
    threads: int | None = None
    """CPU threads of each stage; None: all cores that the process may use."""
    max_in_flight: int = 32
    """Generations that the server takes on at a time; the next one is refused."""
    jobs_dir: Path = Path(f"/dev/shm/tiny-sd-jobs-{os.getuid()}")
    """Folder of the job board, on tmpfs. Servers may share it: each keeps a board of its own there."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read the ``TINY_SD_*`` variables. Raises :class:`SettingError` naming the variable and what is allowed."""
        read = _Reader(environment)
        checkpoint = environment.get("TINY_SD_CHECKPOINT", "")
        if not checkpoint:
            raise SettingError("TINY_SD_CHECKPOINT: not set; it names the diffusers checkpoint folder to serve")
        precision = environment.get("TINY_SD_PRECISION") or cls.precision
        if precision not in PRECISIONS:
            raise SettingError(f"TINY_SD_PRECISION: got {precision!r}; allowed: {', '.join(PRECISIONS)}")
        return cls(
            checkpoint=Path(checkpoint),
            precision=precision,
            sizes=read.sizes("TINY_SD_SIZES", (512, 768, 1024)),
            quantum_ms=read.number("TINY_SD_QUANTUM_MS", cls.quantum_ms, at_least=1),
            max_rows=read.count("TINY_SD_MAX_ROWS"),
            evict_after_s=read.number("TINY_SD_EVICT_AFTER_S", cls.evict_after_s, at_least=1),
            text_cache_mb=read.count("TINY_SD_TEXT_CACHE_MB") or cls.text_cache_mb,
            threads=read.count("TINY_SD_THREADS"),
            max_in_flight=read.count("TINY_SD_MAX_IN_FLIGHT") or cls.max_in_flight,
            jobs_dir=Path(environment.get("TINY_SD_JOBS_DIR") or cls.jobs_dir),
        )


@dataclass(frozen=True)
class _Reader:
    environment: Mapping[str, str]

    def number(self, name: str, default: float, at_least: float) -> float:
        text = self.environment.get(name, "")
        try:
            value = float(text) if text else default
        except ValueError:
            value = float("nan")
        if not at_least <= value < math.inf:
            raise SettingError(f"{name}: got {text!r}; allowed: a number of at least {at_least:g}")
        return value

    def count(self, name: str) -> int | None:
        text = self.environment.get(name, "")
        if not text:
            return None
        if not text.isascii() or not text.isdigit() or int(text) < 1:
            raise SettingError(f"{name}: got {text!r}; allowed: a whole number of at least 1")
        return int(text)

    def sizes(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        text = self.environment.get(name, "")
        if not text:
            return default
        parts = [part.strip() for part in text.split(",")]
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise SettingError(f"{name}: got {text!r}; allowed: pixel counts separated by commas, like 512,768")
        sizes = set(map(int, parts))
        if DEFAULT_SIZE not in sizes:
            raise SettingError(f"{name}: got {text!r}; it must hold {DEFAULT_SIZE}, which callers get who name no size")
        return tuple(sorted(sizes))
