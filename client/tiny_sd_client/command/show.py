"""``tiny-sd show``."""

from __future__ import annotations

import argparse
import json
import sys

from tiny_sd_client.command.failures import report
from tiny_sd_client.command.files import read
from tiny_sd_client.command.terminal import printable
from tiny_sd_client.pictures import InvalidImage, read_parameters


def run(options: argparse.Namespace) -> int:
    """Print the parameters inside each file; a file without them does not keep the others from it."""
    code = 0
    for file in options.files:
        try:
            parameters = read_parameters(read(file))
        except (InvalidImage, OSError) as error:
            if isinstance(error, InvalidImage):
                error.add_note(file)
            failed = report(error, as_json=options.json)
            code = code or failed
            continue
        if options.json:
            sys.stdout.write(json.dumps({"file": file, "parameters": parameters}) + "\n")
        else:
            lines = [f"  {printable(name):<20} {printable(_shown(value))}" for name, value in parameters.items()]
            sys.stdout.write("\n".join([file, *lines, ""]))
    return code


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
