"""What is read, and where pictures are written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tiny_sd_client.command.failures import UsageError
from tiny_sd_client.parameters import ImageFormat

SUFFIXES = {".jpg": ImageFormat.JPEG, ".jpeg": ImageFormat.JPEG, ".png": ImageFormat.PNG, ".webp": ImageFormat.WEBP}


def read(name: str) -> bytes:
    """What the file ``name`` holds; ``-`` is stdin. Raises OSError."""
    return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()


class Folder:
    """Where the pictures of one run go. Nothing that was there is replaced, unless ``overwrite``.

    ``out`` names a folder, or a file, which every picture is then named after.
    """

    def __init__(self, out: str, *, overwrite: bool = False) -> None:
        path = Path(out)
        self._file: Path | None = None
        if path.is_dir() or out.endswith(os.sep) or not path.suffix:
            self._folder = path
        elif path.suffix.lower() in SUFFIXES:
            self._folder, self._file = path.parent, path
        else:
            names = ", ".join(SUFFIXES)
            raise UsageError(f"--out: got {out!r}; allowed: a file in {names}, a folder (ends with {os.sep}), or -")
        self._overwrite = overwrite
        self._written: set[Path] = set()

    @property
    def image_format(self) -> ImageFormat | None:
        """The format that the file's name asks for."""
        return SUFFIXES[self._file.suffix.lower()] if self._file else None

    def make(self) -> None:
        """Make the folder, and see that it can be written to. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise PermissionError(None, "cannot be written to", str(self._folder))

    def sheet(self) -> Path:
        """Where the sheet goes that has no name of its own."""
        return self._file.with_stem(f"{self._file.stem}-grid") if self._file else self._folder / "grid.jpg"

    def save_picture(self, data: bytes, name: str, image_format: ImageFormat) -> Path:
        """Write a picture to the run's file, or to one called ``name``, and return where it went. Raises OSError."""
        suffix = ".jpg" if image_format is ImageFormat.JPEG else f".{image_format}"
        return self.save(data, self._file or self._folder / f"{name}{suffix}")

    def save(self, data: bytes, path: Path) -> Path:
        """Write ``data`` to ``path``, or to path-2, path-3, … where that is taken. Raises OSError."""
        candidate, number = path, 1
        while candidate in self._written or not self._written_to(candidate, data):
            number += 1
            candidate = path.with_stem(f"{path.stem}-{number}")
        self._written.add(candidate)
        return candidate

    def _written_to(self, path: Path, data: bytes) -> bool:
        """False where a file stands in the way."""
        try:
            with path.open("wb" if self._overwrite else "xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        return True
