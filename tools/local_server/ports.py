"""The three ports of a Triton server."""

from __future__ import annotations

import errno
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
        # All three are held until the last is known, so that no port is handed out twice.
        sockets = [stack.enter_context(_listening(host, 0)) for _ in range(3)]
        return Ports(*(held.getsockname()[1] for held in sockets))


def check_ports(host: str, ports: Ports) -> None:
    """Raise BusyPort, naming the port and its option, if the server could not listen on one of its ports.

    Triton itself finds out only after it has loaded every model.
    """
    with ExitStack() as stack:
        # Each is held until all are checked, so that two equal ports are noticed too.
        for name, port in asdict(ports).items():
            stack.enter_context(_claimed(name, host, port))


def _claimed(name: str, host: str, port: int) -> socket.socket:
    place = f"the {name} port {port} on {host}"
    if not 1 <= port <= 65535:
        raise BusyPort(f"{place} is not a port: --{name}-port takes 1 to 65535")
    try:
        return _listening(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            advice = f"stop what listens there, or choose another with --{name}-port"
            raise BusyPort(f"{place} is already in use: {advice}") from error
        advice = f"choose another with --{name}-port or --host"
        raise BusyPort(f"cannot listen on {place}: {error.strerror}; {advice}") from error


def _listening(host: str, port: int) -> socket.socket:
    # Merely bound, a port could be bound again: only a listener has it to itself. Ports of connections that were
    # closed a moment ago count as free, as they do for Triton.
    return socket.create_server((host, port), backlog=1)
