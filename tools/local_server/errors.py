"""Why a local server did not start or did not stay, as types. Every message says what to do.

ServeError
├── NoTriton          no tritonserver on this machine
├── NoStub            the wheel's Python backend does not know this Python version
├── NoSharedPython    this Python has no shared library that the stub could load
├── BusyPort          a port cannot be listened on
├── NoCheckpoint      the checkpoint folder does not exist
├── BrokenCheckpoint  the checkpoint folder cannot be served
├── ServerDied        Triton stopped on its own: a model failed to load, or later
├── ModelDied         a model's process has ended, and Triton goes on without it
└── NotReady          Triton runs but was not ready in time
"""

from __future__ import annotations


class ServeError(Exception):
    """Base of everything that keeps a local server from serving."""


class NoTriton(ServeError):
    """Neither a tritonserver binary nor the nvidia-pytriton wheel was found."""


class NoStub(ServeError):
    """The nvidia-pytriton wheel has no Python backend stub for the running Python version."""


class NoSharedPython(ServeError):
    """The running Python was built without a shared libpython, which the stub needs."""


class BusyPort(ServeError):
    """A port is taken, or may not be listened on."""


class NoCheckpoint(ServeError):
    """The checkpoint folder that was asked for does not exist."""


class BrokenCheckpoint(ServeError):
    """The checkpoint folder is there, but the engine cannot serve it."""


class ServerDied(ServeError):
    """Triton stopped without being told to. The message holds the models that failed, or the last errors."""


class ModelDied(ServeError):
    """The process of a model has ended. Triton goes on and calls itself ready, but that model answers no more."""


class NotReady(ServeError):
    """Triton was still not ready when the time for it was over."""
