"""The ``test`` checkpoint laid out as others publish theirs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

MODEL_CARD = "---\nlicense: creativeml-openrail-m\ntags:\n- stable-diffusion\n---\n# A model\n"
UNET = "unet/diffusion_pytorch_model"
VAE = "vae/diffusion_pytorch_model"
TEXT_ENCODER = "text_encoder/model"
_DEPRECATED = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


class Touches:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def like_segmind(checkpoint: Path, out: Path) -> Path:
    """As segmind/tiny-sd: float32 in ``.bin`` files only, some tensors not contiguous, no safety checker."""
    shutil.copytree(checkpoint, out)
    (out / "README.md").write_text(MODEL_CARD)
    (out / ".gitattributes").write_text("*.bin filter=lfs\n")
    (out / "sample.png").write_bytes(b"a picture")
    for stem, target in ((UNET, UNET), (VAE, VAE), (TEXT_ENCODER, "text_encoder/pytorch_model")):
        torch.save({name: _scattered(tensor) for name, tensor in published(out, stem).items()}, out / f"{target}.bin")
        (out / f"{stem}.safetensors").unlink()
    return out


def like_runway(checkpoint: Path, out: Path) -> Path:
    """As Stable Diffusion 1.5: a safety checker, each network in many variants, names of long ago, a licence file."""
    shutil.copytree(checkpoint, out)
    (out / "README.md").write_text(MODEL_CARD)
    (out / "LICENSE.md").write_text("The licence itself.")
    (out / "v1-5-pruned-emaonly.safetensors").write_bytes(b"for other programs")
    index = json.loads((out / "model_index.json").read_text())
    for component, entry in (
        ("safety_checker", ["stable_diffusion", "StableDiffusionSafetyChecker"]),
        ("feature_extractor", ["transformers", "CLIPImageProcessor"]),
    ):
        (out / component).mkdir()
        (out / component / "config.json").write_text("{}")
        index[component] = entry
    (out / "safety_checker" / "model.safetensors").write_bytes(b"not wanted here")
    (out / "model_index.json").write_text(json.dumps({**index, "requires_safety_checker": True}))
    for stem in (UNET, VAE, TEXT_ENCODER):
        tensors = published(out, stem)
        save_file(tensors, out / f"{stem}.safetensors", metadata={"format": "pt"})
        for variant in ("fp16", "non_ema"):  # recognizably others
            others = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
            save_file(others, out / f"{stem}.{variant}.safetensors", metadata={"format": "pt"})
        bins = out / stem.replace("/model", "/pytorch_model")
        torch.save(others, f"{bins}.bin")
        torch.save(others, f"{bins}.fp16.bin")
    return out


def published(checkpoint: Path, stem: str) -> dict[str, torch.Tensor]:
    """The tensors of a network, in float32 with digits that float16 does not have, under the names of long ago."""
    tensors = {}
    for name, tensor in load_file(checkpoint / f"{stem}.safetensors").items():
        old = name
        if stem == TEXT_ENCODER:
            old = f"text_model.{name}"
        elif stem == VAE and ".attentions." in name:
            for new_part, old_part in _DEPRECATED.items():
                old = old.replace(f".{new_part}.", f".{old_part}.")
        tensors[old] = tensor.float() * 1.0001
    if stem == TEXT_ENCODER:
        tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return tensors


def _scattered(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, where there are rows and columns in another order of memory."""
    return tensor.mT.contiguous().mT if tensor.ndim > 1 and tensor.is_floating_point() else tensor
