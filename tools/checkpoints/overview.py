"""A checkpoint at a glance, without loading it."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from checkpoints.layout import COMPONENTS, choose_in
from checkpoints.manifest import read_manifest
from checkpoints.weights import precision, read
from tiny_sd_engine.checkpoint import inspect, latent_shape, load_scheduler_config


def overview(folder: Path) -> RenderableType:
    """Components with their classes and sizes, the VAE's factor, the scheduler's configuration, and the source.

    Raises :class:`tiny_sd_engine.errors.CheckpointError` for a folder that is not whole.
    """
    inspect(folder)
    return Group(_components(folder), "", _facts(folder))


def _components(folder: Path) -> Table:
    table = Table("component", "class", box=None, pad_edge=False)
    for title in ("parameters", "precision", "MB on disk"):
        table.add_column(title, justify="right")
    classes = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    weights = choose_in(folder).weights
    for component in COMPONENTS:
        tensors = [tensor for name in weights.get(component, ()) for tensor in read(folder / name).values()]
        numbers = [tensor for tensor in tensors if tensor.is_floating_point()]
        size = sum(file.stat().st_size for file in (folder / component).iterdir() if file.is_file())
        table.add_row(
            component,
            str((classes.get(component) or ["?"])[-1]),
            f"{sum(tensor.numel() for tensor in numbers):,}" if numbers else "",
            ", ".join(sorted({precision(tensor.dtype) for tensor in numbers})),
            f"{size / 1e6:,.1f}",
        )
    return table


def _facts(folder: Path) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    channels, factor = latent_shape(folder)
    table.add_row("latents", f"{channels} channels, one latent for {factor}x{factor} pixels")
    config = load_scheduler_config(folder)
    table.add_row("scheduler", "  ".join(f"{name}={value}" for name, value in config.items() if name[0] != "_"))
    if manifest := read_manifest(folder):
        table.add_row("source", str(manifest.source))
        table.add_row("licence", manifest.licence or "not stated")
    return table
