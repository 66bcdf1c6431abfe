"""A Triton Inference Server on this machine, without containers: found, started, watched and stopped.

with LocalServer() as server:
    requests.get(f"http://{server.http_url}/v2/health/ready")
"""

from local_server.errors import (
    BrokenCheckpoint,
    BusyPort,
    ModelDied,
    NoCheckpoint,
    NoSharedPython,
    NoStub,
    NotReady,
    NoTriton,
    ServeError,
    ServerDied,
)
from local_server.log import ModelProgress
from local_server.ports import Ports, free_ports
from local_server.server import LocalServer, OnLine, OnProgress

__all__ = [
    "BrokenCheckpoint",
    "BusyPort",
    "LocalServer",
    "ModelDied",
    "ModelProgress",
    "NoCheckpoint",
    "NoSharedPython",
    "NoStub",
    "NoTriton",
    "NotReady",
    "OnLine",
    "OnProgress",
    "Ports",
    "ServeError",
    "ServerDied",
    "free_ports",
]
