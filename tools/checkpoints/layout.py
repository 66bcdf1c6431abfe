"""Which files of a diffusers repository make a Stable-Diffusion-1.x checkpoint, on a hub or in a folder.

Repositories hold more than that: the same weights in other formats and precisions, a safety checker, single-file
checkpoints for other programs, pictures.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tiny_sd_engine.errors import CheckpointError

COMPONENTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
MODEL_CARD = "README.md"
_CONFIGS = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "vae/config.json",
)
_VOCABULARY = ("tokenizer/merges.txt", "tokenizer/vocab.json")
_OPTIONAL = (
    MODEL_CARD,
    "tokenizer/added_tokens.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer.json",
    *_VOCABULARY,
)
_LICENCE = re.compile(r"(licen[sc]e|copying|notice)(\.(md|txt))?", re.IGNORECASE)
_STEMS = {
    "text_encoder": {"safetensors": "model", "bin": "pytorch_model"},
    "unet": {"safetensors": "diffusion_pytorch_model", "bin": "diffusion_pytorch_model"},
    "vae": {"safetensors": "diffusion_pytorch_model", "bin": "diffusion_pytorch_model"},
}
# Beside others, `.fp16` weights are the same ones rounded, so they come last. `.non_ema` ones are for training on.
_PREFERENCE = (("", "safetensors"), ("", "bin"), (".fp16", "safetensors"), (".fp16", "bin"))


@dataclass(frozen=True)
class Layout:
    """The files that are needed, by their names from the root, like ``unet/config.json``."""

    weights: dict[str, tuple[str, ...]]
    """By component, its weight file, or its shards in their order."""
    others: tuple[str, ...]
    """Configurations, tokenizer, licence and model card."""

    @property
    def files(self) -> tuple[str, ...]:
        """All of them, the large ones last."""
        return (*self.others, *(file for files in self.weights.values() for file in files))


def choose(names: Collection[str], root: Path) -> Layout:
    """Choose from all the files of a repository; ``root`` is only for the messages.

    Raises :class:`CheckpointError` for what is missing.
    """
    weights = {component: _weights(component, names, root) for component in _STEMS}
    wanted = set(_CONFIGS)
    if "tokenizer/tokenizer.json" not in names:
        wanted.update(_VOCABULARY)
    for name in sorted(wanted.difference(names)):
        raise CheckpointError(root / name, "missing")
    others = {name for name in names if name in wanted or name in _OPTIONAL or _LICENCE.fullmatch(name)}
    return Layout(weights, tuple(sorted(others)))


def choose_in(folder: Path) -> Layout:
    """Choose from the files of a local folder. Raises :class:`CheckpointError` for what is missing."""
    if not folder.is_dir():
        raise CheckpointError(folder, "no such folder; it should be a diffusers checkpoint")
    files = (path.relative_to(folder) for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file())
    return choose({file.as_posix() for file in files}, folder)


def safetensors_name(component: str) -> str:
    """What a network's weights are called as one safetensors file, like ``vae/diffusion_pytorch_model.safetensors``."""
    return f"{component}/{_STEMS[component]['safetensors']}.safetensors"


def _weights(component: str, names: Collection[str], root: Path) -> tuple[str, ...]:
    stems = _STEMS[component]
    for variant, ending in _PREFERENCE:
        stem = f"{component}/{stems[ending]}{variant}"
        if f"{stem}.{ending}" in names:
            return (f"{stem}.{ending}",)
        if shards := _shards(stem, ending, names, root):
            return shards
    expected = " or ".join(f"{stems[ending]}.{ending}" for ending in ("safetensors", "bin"))
    if not any(PurePosixPath(name).parent.name == component for name in names):
        raise CheckpointError(root / component, f"missing; a diffusers checkpoint has a folder {component}/")
    raise CheckpointError(root / component, f"has no weights; expected {expected}")


def _shards(stem: str, ending: str, names: Collection[str], root: Path) -> tuple[str, ...]:
    pattern = re.compile(rf"{re.escape(stem)}-\d{{5}}-of-(\d{{5}})\.{ending}")
    totals = {match[1] for match in map(pattern.fullmatch, names) if match}
    for total in sorted(totals):
        shards = tuple(f"{stem}-{number:05}-of-{total}.{ending}" for number in range(1, int(total) + 1))
        for shard in shards:
            if shard not in names:
                raise CheckpointError(root / shard, "missing")
        return shards
    return ()
