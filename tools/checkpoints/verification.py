"""Whether a checkpoint folder can be served, found out by loading and using it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from checkpoints.layout import choose_in
from checkpoints.manifest import MANIFEST, check_manifest, read_manifest
from checkpoints.weights import check_finite, precision, read
from tiny_sd_client.parameters import parse
from tiny_sd_engine.checkpoint import inspect, load_tokenizer
from tiny_sd_engine.errors import CheckpointError
from tiny_sd_engine.pipeline import Pipeline

Report = Callable[[str, str], None]
"""Is told what was done or looked at, and the outcome."""

_NETWORKS = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}
_UNFITTING = {
    "missing_keys": "lacks {} tensors that its config.json makes, like {}",
    "unexpected_keys": "has {} tensors that its config.json does not make, like {}",
}
_PIXELS = 64
"""Edge of the test picture: small, and still a latent or more at the innermost level of every known U-Net."""


def verify(folder: Path, report: Report) -> None:
    """Check a checkpoint: its files, every number of its weights, that its parts load and fit, and one small picture.

    Raises :class:`CheckpointError` naming the first file, and the tensor, that is wrong.
    """
    inspect(folder)
    report("files", "all there")
    if manifest := read_manifest(folder):
        check_manifest(folder, manifest)
        report(MANIFEST, f"{len(manifest.files)} files have the SHA-256 it lists")
    weights = choose_in(folder).weights
    configs = {}
    for component, kind in _NETWORKS.items():
        files = [folder / name for name in weights[component]]
        configs[component] = _check_network(folder / component, kind, files, report)
    _check_tokenizer(folder, configs["text_encoder"], report)
    _check_fit(folder, configs)
    _check_picture(folder, report)


def _check_network(folder: Path, kind: Any, files: list[Path], report: Report) -> Any:
    """Load a network and return its configuration; it has exactly the tensors that its configuration makes."""
    for file in files:
        check_finite(file)
    # As it is stored: another precision would cost memory, and might hide what is wrong.
    stored = next((tensor.dtype for tensor in read(files[0]).values() if tensor.is_floating_point()), torch.float32)
    try:
        network, found = kind.from_pretrained(
            folder,
            dtype=stored,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the report names them
        )
    except Exception as error:  # whatever the libraries raise, the folder's name belongs with it
        raise CheckpointError(folder, f"cannot be loaded: {error}") from error
    where = files[0] if len(files) == 1 else folder
    for name, shape, expected in sorted(found["mismatched_keys"]):
        raise CheckpointError(
            where, f"tensor {name} has shape {list(shape)}; {folder.name}/config.json makes it {list(expected)}"
        )
    for keys, problem in _UNFITTING.items():
        if names := sorted(found[keys]):
            raise CheckpointError(where, problem.format(len(names), names[0]))
    count = sum(parameter.numel() for parameter in network.parameters())
    report(folder.name, f"{count:,} parameters in {precision(stored)}, as its config.json makes them, all finite")
    return network.config


def _check_tokenizer(folder: Path, text_encoder: Any, report: Report) -> None:
    tokenizer = load_tokenizer(folder)
    path = folder / "tokenizer"
    highest = max(tokenizer.get_vocab().values())
    if highest >= text_encoder.vocab_size:
        raise CheckpointError(
            path, f"has token ids up to {highest}; the text encoder's end at {text_encoder.vocab_size - 1}"
        )
    window, room = tokenizer.model_max_length, text_encoder.max_position_embeddings
    if not 2 < window <= room:
        raise CheckpointError(path, f"makes windows of {window} tokens; the text encoder has room for {room}")
    if None in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        raise CheckpointError(path, "lacks a token for begin, end or padding")
    report("tokenizer", f"{highest + 1:,} tokens, windows of {window}: fits the text encoder")


def _check_fit(folder: Path, configs: dict[str, Any]) -> None:
    unet = configs["unet"]
    pairs = (
        ("cross_attention_dim", "text_encoder", "hidden_size"),
        ("in_channels", "vae", "latent_channels"),
        ("out_channels", "vae", "latent_channels"),
    )
    for ours, component, theirs in pairs:
        expected = getattr(configs[component], theirs)
        if getattr(unet, ours) != expected:
            raise CheckpointError(
                folder / "unet" / "config.json",
                f"says {ours} {getattr(unet, ours)}, but {component}/config.json says {theirs} {expected}",
            )


def _check_picture(folder: Path, report: Report) -> None:
    parameters = parse(
        {"prompt": "a picture", "seed": 0, "guidance_scale": 1.0, "img_width": _PIXELS, "img_height": _PIXELS},
        (_PIXELS,),
    )
    try:
        picture = Pipeline.from_checkpoint(folder).generate(parameters).pixels[0]
    except CheckpointError:
        raise
    except Exception as error:  # as above
        raise CheckpointError(folder, f"makes no picture: {error}") from error
    if (picture == picture[0, 0]).all():
        raise CheckpointError(folder, "makes a picture of one colour only: its numbers say nothing")
    report("picture", f"{_PIXELS}x{_PIXELS}, {parameters.num_inference_steps} steps: made, not of one colour")
