"""How one request is sent and its pictures received, by each protocol. Every call blocks its own greenlet only."""

from load_tests.calls.answers import Call, Failed, Lost, Mark, NotAnswered, Refused
from load_tests.calls.connections import GATEWAY, TRANSPORTS, Connections

__all__ = [
    "GATEWAY",
    "TRANSPORTS",
    "Call",
    "Connections",
    "Failed",
    "Lost",
    "Mark",
    "NotAnswered",
    "Refused",
]
