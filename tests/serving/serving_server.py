"""How the tests start their Triton servers."""

from __future__ import annotations

from pathlib import Path

from local_server import LocalServer

FP32 = {"TINY_SD_PRECISION": "fp32"}
SMALL_SIZES = {"TINY_SD_SIZES": "128,256,512"}


def serve(checkpoint: Path, log: Path, environment: dict[str, str], *arguments: str) -> LocalServer:
    return LocalServer(
        env={"TINY_SD_CHECKPOINT": str(checkpoint), **FP32, **environment},
        extra_args=arguments,
        log_path=log,
    )
