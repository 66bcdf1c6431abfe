"""docker-compose.yml as Compose itself understands it, and the tools that these tests run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
PROFILES = ("gpu", "cpu", "tracing", "load")
EITHER = ("gpu", "cpu")
"""Of these two, one is always on."""


def tool(name: str) -> str:
    """The path of a command: of the virtual environment that tests run in, else of the system."""
    ours = Path(sys.executable).with_name(name)
    if ours.exists():
        return str(ours)
    found = shutil.which(name)
    assert found, f"{name} is not installed; `make test` installs it"
    return found


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; what it says is in the result, and in the test's failure if that shows it."""
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)


@cache
def project(*profiles: str) -> dict[str, Any]:
    """The whole configuration with these profiles, every default filled in."""
    # What the operator may set must not change the result.
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    wanted = [argument for profile in profiles for argument in ("--profile", profile)]
    file = ROOT / "docker-compose.yml"
    answer = run(
        tool("docker-compose"), "--file", file, *wanted, "config", "--format", "json", env=environment, cwd="/"
    )
    assert answer.returncode == 0, answer.stderr
    assert not answer.stderr, "Compose warns"
    return dict(json.loads(answer.stdout))


def services(*profiles: str) -> dict[str, Any]:
    """The services with these profiles, or with all of them."""
    return dict(project(*(profiles or PROFILES))["services"])


def reached(answers: str) -> dict[str, Any]:
    """The services that other containers may reach by the name ``answers``."""
    return {
        name: service
        for name, service in services().items()
        if answers == name or answers in (service["networks"].get("default") or {}).get("aliases", [])
    }


def seconds(duration: str) -> float:
    """Of a duration such as Compose writes it: 6m0s."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    parts = re.findall(r"(\d+)([hms])", duration)
    assert "".join(map("".join, parts)) == duration, duration
    return sum(float(number) * units[unit] for number, unit in parts)


def mounts(service: dict[str, Any]) -> dict[str, Path]:
    """The files and folders of this repository that a service sees: path in the container -> path here."""
    return {each["target"]: Path(each["source"]) for each in service["volumes"] if each["type"] == "bind"}
