"""Arrays computed once, memory-mapped, in a folder that any number of runs may share.

Files are named after what they were computed from, so that a changed VAE or picture makes a new file instead of a wrong
one; and they appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[np.float16]]


def stored(
    path: Path,
    count: int,
    compute: Callable[[range], Tensor],
    *,
    at_once: int,
    begin: Callable[[int], Callable[[int], None]],
) -> Array:
    """The array [count, …] at `path`; unless it is there, its rows are computed, so many at once, and written.

    begin: told the number of rows before they are computed; what it gives is told how many more there are each time
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            _write(partial, count, compute, at_once, begin(count))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def rows(array: Array, numbers: Sequence[int]) -> Tensor:
    """These rows, float32."""
    return torch.from_numpy(array[list(numbers)].astype(np.float32))


def key(*sources: str | Path) -> str:
    """A short name for what an array is computed from: texts, and folders with all their files."""
    digest = hashlib.sha256()
    for source in sources:
        if isinstance(source, Path):
            for file in sorted(path for path in source.rglob("*") if path.is_file()):
                digest.update(f"{file.relative_to(source)}\n".encode())
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
        else:
            digest.update(f"{source}\n".encode())
    return digest.hexdigest()[:16]


def _write(
    path: Path, count: int, compute: Callable[[range], Tensor], at_once: int, advance: Callable[[int], None]
) -> None:
    array: Any = None
    for start in range(0, count, at_once):
        group = range(start, min(start + at_once, count))
        values = compute(group).half().cpu().numpy()
        if array is None:
            array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(count, *values.shape[1:]))
        array[group.start : group.stop] = values
        advance(len(group))
    array.flush()
