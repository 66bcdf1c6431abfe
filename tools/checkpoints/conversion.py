"""A new checkpoint folder from an old one: safetensors in one precision, only the files that are needed, a manifest."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from checkpoints.layout import COMPONENTS, choose_in, safetensors_name
from checkpoints.manifest import (
    NOTICE,
    File,
    Manifest,
    Source,
    check_manifest,
    notice,
    read_manifest,
    sha256,
    stated_licence,
    write_manifest,
)
from checkpoints.verification import Report, verify
from checkpoints.weights import PRECISIONS, check_finite, precision, read, write
from tiny_sd_engine.errors import CheckpointError

_INDEX = "model_index.json"


def convert(folder: Path, out: Path, to: str, report: Report, source: Source | None = None) -> None:
    """Make the checkpoint ``out`` from ``folder``, its weights in the precision ``to``, and verify it.

    ``out`` appears whole or not at all. Without a ``source``, a manifest in ``folder`` names it, else ``folder`` is it.

    Raises :class:`CheckpointError` naming the file of ``folder`` that is wrong, and FileExistsError for an ``out``.
    """
    layout = choose_in(folder)
    earlier = None if source else read_manifest(folder)
    if earlier:
        check_manifest(folder, earlier)
    with _appearing_at(out) as made:
        files = {name: _take_along(folder, made, name) for name in layout.others if name not in {_INDEX, NOTICE}}
        files[_INDEX], left_out = _reduce_index(folder, made)
        report("left out", ", ".join(left_out) or "nothing")
        for component, names in layout.weights.items():
            target = safetensors_name(component)
            files[target] = _convert_weights(folder, names, made / target, to)
            report(component, files[target].change or f"is safetensors in {to} already")
        manifest = Manifest(
            source=source or (earlier.source if earlier else Source(name=folder.resolve().name)),
            licence=stated_licence(folder) or (earlier.licence if earlier else None),
            precision=to,
            left_out=left_out,
            files=files,
        )
        manifest.files[NOTICE] = _write_notice(folder, made, manifest)
        write_manifest(made, manifest)
        try:
            verify(made, report)
        except CheckpointError as error:
            raise _about_source(error, made, folder, manifest) from error


@contextmanager
def _appearing_at(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place ``out`` at the end, or goes if there is an error."""
    if out.exists():
        raise FileExistsError(f"{out} exists; name a folder that does not")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as directory:
        made = Path(directory, out.name)
        made.mkdir()
        yield made
        made.rename(out)


def _take_along(folder: Path, made: Path, name: str) -> File:
    (made / name).parent.mkdir(exist_ok=True)
    shutil.copyfile(folder / name, made / name)
    return _describe(made / name)


def _describe(path: Path, change: str | None = None, made_from: dict[str, str] | None = None) -> File:
    return File(sha256=sha256(path), change=change, made_from=made_from or {})


def _reduce_index(folder: Path, made: Path) -> tuple[File, list[str]]:
    """Write model_index.json without the components that are left out, so that diffusers does not look for them."""
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        left_out = sorted(
            name for name, entry in index.items() if isinstance(entry, list) and any(entry) and name not in COMPONENTS
        )
    except (ValueError, AttributeError) as error:
        raise CheckpointError(folder / _INDEX, f"is not a readable JSON object: {error}") from None
    if not left_out:
        return _take_along(folder, made, _INDEX), []
    index.update({name: [None, None] for name in left_out})
    if "safety_checker" in left_out:
        index["requires_safety_checker"] = False
    (made / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    change = f"without {', '.join(left_out)}"
    return _describe(made / _INDEX, change, {_INDEX: sha256(folder / _INDEX)}), left_out


def _convert_weights(folder: Path, names: tuple[str, ...], target: Path, to: str) -> File:
    target.parent.mkdir(exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        check_finite(folder / name)
        tensors |= read(folder / name)
        _check_range(folder / name, to)
    # The only others are position ids, which older libraries saved and newer ones count up themselves.
    numbers = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    found = sorted({precision(tensor.dtype) for tensor in tensors.values()})
    if found == [to] and names == (f"{target.parent.name}/{target.name}",):
        shutil.copyfile(folder / names[0], target)
        return _describe(target)
    change = f"converted from {', '.join(names)} in {', '.join(found)} to safetensors in {to}"
    if dropped := sorted(tensors.keys() - numbers.keys()):
        change += f", without {', '.join(dropped)}"
    write(target, numbers, to, {"format": "pt", "changed": change})
    return _describe(target, change, {name: sha256(folder / name) for name in names})


def _check_range(file: Path, to: str) -> None:
    largest = torch.finfo(PRECISIONS[to]).max
    for name, tensor in read(file).items():
        if tensor.is_floating_point() and tensor.numel() and max(map(abs, torch.aminmax(tensor))) > largest:
            raise CheckpointError(
                file, f"tensor {name} holds numbers beyond {largest:g}, where {to} ends; use bf16 or fp32"
            )


def _write_notice(folder: Path, made: Path, manifest: Manifest) -> File:
    text = notice(manifest)
    if (folder / NOTICE).is_file():
        text += f"\nThe source's own notice:\n\n{(folder / NOTICE).read_text(encoding='utf-8', errors='replace')}"
    (made / NOTICE).write_text(text, encoding="utf-8")
    return _describe(made / NOTICE, change="added")


def _about_source(error: CheckpointError, made: Path, folder: Path, manifest: Manifest) -> CheckpointError:
    """The same error about the file that the user knows; the other one is about to go."""
    name = error.path.relative_to(made).as_posix()
    origin = next(iter(manifest.files[name].made_from), name) if name in manifest.files else name
    return CheckpointError(folder / origin, str(error).removeprefix(f"{error.path}: "))
