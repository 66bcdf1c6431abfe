"""The command ``tiny-sd``: make pictures, look at their parameters, watch and cancel what the server is doing."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line of this process and return the exit code."""
    try:
        # Loading takes a moment, in which Ctrl-C may come already.
        from tiny_sd_client.command.main import main as run  # noqa: PLC0415
    except KeyboardInterrupt:
        return 130
    return run(sys.argv[1:])
