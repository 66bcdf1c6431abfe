"""Client of Tiny-SD on Triton.

    from tiny_sd_client import Client

    with Client("grpc://localhost:8001") as client:
        client.generate("a small red circle", samples=2).save("pictures")

Names are loaded when they are first used: whoever needs nothing but ``tiny_sd_client.parameters``, as the server does,
loads neither gRPC nor HTTP nor Pillow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiny_sd_client._async_client import AsyncClient, AsyncJob
    from tiny_sd_client._client import Client, Job
    from tiny_sd_client._transport import TLS
    from tiny_sd_client.errors import (
        Busy,
        Cancelled,
        DeadlineExceeded,
        ServerFault,
        TinySDError,
        Unavailable,
        UnknownJob,
    )
    from tiny_sd_client.parameters import ImageFormat, InvalidParameter, Options, Parameters, Scheduler
    from tiny_sd_client.results import Generation, JobStatus, Progress, ServerStatus, Stage, Timings

_HOMES = {
    "_client": ("Client", "Job"),
    "_async_client": ("AsyncClient", "AsyncJob"),
    "_transport": ("TLS",),
    "results": ("Generation", "Progress", "Stage", "JobStatus", "ServerStatus", "Timings"),
    "parameters": ("Parameters", "Options", "Scheduler", "ImageFormat", "InvalidParameter"),
    "errors": ("TinySDError", "Busy", "DeadlineExceeded", "Cancelled", "UnknownJob", "Unavailable", "ServerFault"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Client",
    "Job",
    "AsyncClient",
    "AsyncJob",
    "TLS",
    "Generation",
    "Progress",
    "Stage",
    "JobStatus",
    "ServerStatus",
    "Timings",
    "Parameters",
    "Options",
    "Scheduler",
    "ImageFormat",
    "TinySDError",
    "InvalidParameter",
    "Busy",
    "DeadlineExceeded",
    "Cancelled",
    "UnknownJob",
    "Unavailable",
    "ServerFault",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
