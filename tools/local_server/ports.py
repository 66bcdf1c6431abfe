"""The three ports of a Triton server."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from local_server.errors import BusyPort


@dataclass(frozen=True)
class Ports:
    """Where a Triton server listens; the defaults are Triton's own."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


def free_ports(host: str = "127.0.0.1") -> Ports:
    """Three different ports that nothing listens on right now."""
    with ExitStack() as stack:
        # All three stay bound until the last is known, so that no port is handed out twice.
        sockets = [stack.enter_context(_bound(host, 0)) for _ in range(3)]
        return Ports(*(bound.getsockname()[1] for bound in sockets))


def check_ports(host: str, ports: Ports) -> None:
    """Raise BusyPort, naming the port and its option, if the server could not listen on one of its ports.

    Triton itself finds out only after it has loaded every model.
    """
    with ExitStack() as stack:
        # Each stays bound until all are checked, so that two equal ports are noticed too.
        for name, port in asdict(ports).items():
            stack.enter_context(_claimed(name, host, port))


def _claimed(name: str, host: str, port: int) -> socket.socket:
    try:
        return _bound(host, port)
    except (OSError, OverflowError) as error:
        raise BusyPort(_why(name, host, port, error)) from error


def _bound(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Ports of connections that were closed a moment ago (TIME_WAIT) are free for a server.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound


def _why(name: str, host: str, port: int, error: OSError | OverflowError) -> str:
    place = f"the {name} port {port} on {host}"
    if isinstance(error, OverflowError):
        return f"{place} is not a port: --{name}-port takes 1 to 65535"
    if error.errno == errno.EADDRINUSE:
        return f"{place} is already in use: stop what listens there, or choose another with --{name}-port"
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    return f"cannot listen on {place}: {reason}; choose another with --{name}-port or --host"
