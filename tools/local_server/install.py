"""Which Triton to start, and what its processes need to find.

A `tritonserver` of the system (Triton's container has one) brings its own backends. Otherwise the server inside the
nvidia-pytriton wheel is used, whose Python backend has to be put together for the running Python.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from local_server.errors import NoSharedPython, NoStub, NoTriton

ROOT = Path(__file__).resolve().parents[2]
_OUR_PACKAGES = (ROOT / "client", ROOT / "engine")
_CONTAINER_BINARY = Path("/opt/tritonserver/bin/tritonserver")
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Triton:
    """A server that can be started: its binary, the flags it cannot do without, and additions to the environment."""

    binary: Path
    flags: tuple[str, ...] = ()
    paths: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    """Variable name -> folders to put in front of what the variable already holds."""

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """`base` with this Triton's folders in front of its path variables."""
        added = {}
        for variable, folders in self.paths.items():
            entries = [*map(str, folders), base.get(variable, "")]
            added[variable] = os.pathsep.join(entry for entry in entries if entry)
        return {**base, **added}


def find_triton(directory: Path) -> Triton:
    """The Triton of this machine. What has to be put together for it goes into the empty folder `directory`.

    Raises NoTriton, or NoStub and NoSharedPython when the wheel's server cannot run models with this Python.
    """
    if binary := _system_binary():
        return Triton(binary, paths={"PYTHONPATH": (*_OUR_PACKAGES, *_venv_packages())})
    return _wheel(directory)


def _system_binary() -> Path | None:
    if on_path := shutil.which("tritonserver"):
        return Path(on_path)
    return _CONTAINER_BINARY if os.access(_CONTAINER_BINARY, os.X_OK) else None


def _wheel(directory: Path) -> Triton:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise NoTriton(
            "no Triton here: neither `tritonserver` on PATH nor the nvidia-pytriton wheel; "
            "install the wheel with: pip install -e '.[server]'"
        )
    package = Path(spec.submodule_search_locations[0])
    server = package / "tritonserver"
    backends, home = directory / "backends", directory / "python"
    assemble_backend(server, backends)
    assemble_python_home(home, [*_OUR_PACKAGES, *_visible_packages()])
    return Triton(
        server / "bin" / "tritonserver",
        flags=(f"--backend-directory={backends}",),
        paths={
            # Ours first: any other libpython than the running one's fails on its extension modules (torch).
            "LD_LIBRARY_PATH": (shared_python().parent, package.parent / "nvidia_pytriton.libs"),
            "PATH": (home / "bin",),
        },
    )


def assemble_backend(server: Path, directory: Path) -> None:
    """Link the wheel's Python backend and its stub for the running Python into the backend folder `directory`."""
    stub = server / "python_backend_stubs" / _python_version() / _STUB
    if not stub.exists():
        versions = sorted((path.parent.name for path in stub.parents[1].glob(f"*/{_STUB}")), key=_version_key)
        raise NoStub(
            f"nvidia-pytriton has no Python backend for Python {_python_version()}; "
            f"use a virtual environment of one of: {', '.join(versions) or '(none found)'}"
        )
    backend = directory / "python"
    backend.mkdir(parents=True)
    for source in [*(server / "backends" / "python").iterdir(), stub]:
        if source.name != "__pycache__":
            (backend / source.name).symlink_to(source)


def assemble_python_home(home: Path, packages: Iterable[Path]) -> None:
    """Make `home` a virtual environment of the running Python that sees exactly `packages`.

    From Python 3.11 on, the stub's interpreter runs isolated: it ignores PYTHONPATH and PYTHONHOME, and finds its
    modules only through the first `python3` on PATH and the pyvenv.cfg beside that.
    """
    base = Path(getattr(sys, "_base_executable", sys.executable))
    site_packages = home / "lib" / f"python{_python_version()}" / "site-packages"
    for folder in (home / "bin", site_packages):
        folder.mkdir(parents=True)
    (home / "bin" / "python3").symlink_to(base)
    (home / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    # addsitedir rather than the bare folder, so that .pth files inside (editable installs) count too.
    lines = [f"import site; site.addsitedir({str(package)!r})" for package in packages]
    (site_packages / "local_server.pth").write_text("\n".join(lines) + "\n")


def shared_python() -> Path:
    """The running interpreter's shared library, under the name that the stub is linked against."""
    name = f"libpython{_python_version()}.so.1.0"
    library = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    # Relocated builds record a LIBDIR of the machine they were built on: look beside the interpreter too.
    folders = [library, library / multiarch, Path(sys.base_exec_prefix, "lib")]
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    searched = ", ".join(dict.fromkeys(map(str, folders)))
    raise NoSharedPython(
        f"this Python ({sys.executable}) has no {name} (looked in {searched}), which Triton's Python models run in; "
        f"install it (Debian, Ubuntu: apt install libpython{_python_version()}), "
        "or use a Python built with --enable-shared (pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install ...)"
    )


def _python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _version_key(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def _visible_packages() -> list[Path]:
    """The folders of installed packages that this interpreter sees, in its order."""
    return [Path(entry).resolve() for entry in sys.path if Path(entry).name in {"site-packages", "dist-packages"}]


def _venv_packages() -> list[Path]:
    """Those of the virtual environment this runs in; outside of one, a system Triton finds the packages itself."""
    return _visible_packages() if sys.prefix != sys.base_prefix else []
