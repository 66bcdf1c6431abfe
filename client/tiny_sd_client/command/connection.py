"""The client that the options ask for."""

from __future__ import annotations

import argparse

import tiny_sd_client
from tiny_sd_client.command.failures import UsageError


def connect(
    options: argparse.Namespace, *, timeout: float | None = None, patience: float = 60.0
) -> tiny_sd_client.Client:
    """A client for the server of ``options``. Raises :class:`UsageError` for a URL or files that cannot be used.

    timeout, patience: seconds, as for the client
    """
    try:
        tls = None
        if options.ca or options.cert or options.key:
            tls = tiny_sd_client.TLS(ca=options.ca, certificate=options.cert, key=options.key)
        return tiny_sd_client.Client(
            options.url, headers=dict(options.header), tls=tls, timeout=timeout, patience=patience
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
