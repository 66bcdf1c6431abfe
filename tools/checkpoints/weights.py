"""Weight files: safetensors and PyTorch's ``.bin`` are read alike, safetensors are written."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file

from tiny_sd_engine.errors import CheckpointError

PRECISIONS: Mapping[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_CODES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}


def read(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weight file by name, mapped: their pages come into memory when they are used, and can go again.

    Only tensors are ever unpickled. Raises :class:`CheckpointError` for a file that is broken or holds other things.
    """
    try:
        tensors = load_file(file) if file.suffix == ".safetensors" else _read_bin(file)
    except CheckpointError:
        raise
    except Exception as error:  # whatever the libraries raise, the file's name belongs with it
        raise CheckpointError(file, f"cannot be read: {error}") from error
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            raise CheckpointError(file, f"{name!r} is not a plain tensor that the file holds in full")
    return {name: tensor.detach() for name, tensor in tensors.items()}


def precision(dtype: torch.dtype) -> str:
    """A type's name in PRECISIONS, else torch's."""
    names = {known: name for name, known in PRECISIONS.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))


def check_finite(file: Path) -> None:
    """Raise :class:`CheckpointError` naming the first tensor of a weight file that holds NaN or infinity."""
    for name, tensor in read(file).items():
        finite = int(torch.isfinite(tensor).count_nonzero())
        if finite < tensor.numel():
            broken = tensor.numel() - finite
            raise CheckpointError(
                file, f"tensor {name} holds NaN or infinity in {broken:,} of {tensor.numel():,} places"
            )


def write(file: Path, tensors: Mapping[str, torch.Tensor], to: str, metadata: Mapping[str, str]) -> None:
    """Write tensors as one safetensors file in the precision ``to``, holding one of them at a time in memory.

    The library's ``save_file`` wants all of them at once and refuses tensors that share memory. The bytes are the same
    (https://github.com/huggingface/safetensors#format): a header of JSON, its length in front, then the numbers.
    """
    dtype = PRECISIONS[to]
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + tensors[name].numel() * dtype.itemsize
        header[name] = {"dtype": _CODES[to], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("xb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(tensors):
            stream.write(tensors[name].to(dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _read_bin(file: Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(file):
        raise CheckpointError(file, "is not a PyTorch weights file, or was cut short; fetch it again")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"Python objects ({found[1]})" if found else "Python objects"
        raise CheckpointError(file, f"holds {what} besides tensors; loading them could run code") from None
    if not isinstance(content, dict):
        raise CheckpointError(file, f"holds a {type(content).__name__}, not tensors by name")
    return content


def _is_plain(value: object) -> bool:
    """Whether this is a dense tensor that torch computes with, each element a number of its own in the file."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not (value.is_floating_point() and value.itemsize < 2)  # float8 knows no arithmetic
        and value.untyped_storage().nbytes() >= value.numel() * value.itemsize
    )
