"""CLIP score and FID of checkpoints that draw the real world, in the protocol of BK-SDM.

Kim et al., "BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion", ECCV 2024, and its code,
https://github.com/Nota-NetsPresso/BK-SDM: one picture of 512² for each of 30,000 captions of MS-COCO's validation set
of 2014, by PNDM with 25 steps and guidance 7.5, reduced to 256²; CLIP ViT-g/14; FID against all 40,504 pictures of that
set at 256². Here the pictures are scored as they are; there they go through JPEG files first.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from evaluation.lab import Pixels

PICTURE_SIZE = 256
"""Pictures are scored at so many pixels squared."""
_ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}
_TOGETHER = 16


class MetricError(Exception):
    """A score cannot be had. The message says what is missing and what to do."""


class ClipScore:
    """The mean cosine similarity of prompts and pictures; higher is better, about 0.3 for Stable Diffusion.

    model, weights: names in OpenCLIP's list. Fetches the weights unless they are in the hub's cache.

    Raises MetricError without the library.
    """

    def __init__(
        self, device: torch.device, model: str = "ViT-g-14", weights: str | None = "laion2b_s34b_b88k"
    ) -> None:
        open_clip = _import("open_clip", "open_clip_torch")
        self._device = device
        self._model, _, self._preprocess = open_clip.create_model_and_transforms(
            model, pretrained=weights, device=device
        )
        self._model.eval()
        self._tokenize = open_clip.get_tokenizer(model)
        self._similarities: list[float] = []

    @torch.no_grad()
    def add(self, prompt: str, pixels: Pixels) -> None:
        """Score one picture, [height, width, 3] uint8."""
        picture = self._preprocess(scored(Image.fromarray(pixels)))[None].to(self._device)
        seen = self._model.encode_image(picture)
        read = self._model.encode_text(self._tokenize([prompt]).to(self._device))
        self._similarities.append(float(torch.cosine_similarity(seen, read)))

    def value(self) -> float:
        """Over all pictures so far."""
        return float(np.mean(self._similarities))


class FrechetDistance:
    """FID (Heusel et al., 2017): how far the pictures' Inception features are from those of real ones; lower is better.

    references: a folder with the real pictures, read at once
    feature: Inception's layer by its size, or a network, as torchmetrics takes it; fetches Inception's weights unless
        they are in torch's cache

    Raises MetricError without the library or without pictures.
    """

    def __init__(self, references: Path, device: torch.device, feature: Any = 2048) -> None:
        fid = _import("torchmetrics.image.fid", "torchmetrics[image]")
        real = list(reference_pictures(references))
        if len(real) < 2:
            raise MetricError(f"{references}: holds {len(real)} pictures; FID compares with two or more, better 10,000")
        try:
            # As the original Inception network resizes; torchmetrics' own default smooths.
            self._distance = fid.FrechetInceptionDistance(feature=feature, antialias=False).to(device)
        except ModuleNotFoundError as error:  # torchmetrics without its extra
            raise _missing("torch_fidelity", "torchmetrics[image]") from error
        self._device = device
        self._waiting: list[Pixels] = []
        for start in range(0, len(real), _TOGETHER):
            pictures = (Image.open(path).convert("RGB") for path in real[start : start + _TOGETHER])
            self._update([np.asarray(scored(picture)) for picture in pictures], real=True)

    def add(self, prompt: str, pixels: Pixels) -> None:
        """Take one picture in, [height, width, 3] uint8; its prompt does not matter."""
        del prompt
        self._waiting.append(np.asarray(scored(Image.fromarray(pixels))))
        if len(self._waiting) == _TOGETHER:
            self._flush()

    def value(self) -> float:
        """Over all pictures so far, two or more."""
        self._flush()
        return float(self._distance.compute())

    def _flush(self) -> None:
        if self._waiting:
            self._update(self._waiting, real=False)
            self._waiting = []

    def _update(self, pictures: list[Pixels], *, real: bool) -> None:
        batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        self._distance.update(batch.to(self._device), real=real)


def scored(picture: Image.Image) -> Image.Image:
    """The picture at the size at which it is scored."""
    return picture.resize((PICTURE_SIZE, PICTURE_SIZE))


def read_captions(path: Path, count: int) -> list[str]:
    """The first `count` captions of a CSV file whose columns have names, one of them `text`, as BK-SDM's metadata.csv.

    Raises MetricError for a file of another form, or with fewer.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            captions = [row["text"] for row, _ in zip(csv.DictReader(file), range(count), strict=False)]
    except (OSError, UnicodeDecodeError) as error:
        raise MetricError(f"{path}: {error}") from error
    except KeyError:
        raise MetricError(f"{path}: has no column text; expected a first line like file_name,text") from None
    if len(captions) < count:
        raise MetricError(f"{path}: holds {len(captions)} captions; {count} were asked for with --prompts")
    return captions


def reference_pictures(folder: Path) -> Iterator[Path]:
    """The picture files of a folder, in order. Raises MetricError without one."""
    if not folder.is_dir():
        raise MetricError(f"{folder}: no such folder; name one with the real pictures by --references")
    return (path for path in sorted(folder.iterdir()) if path.suffix.lower() in _ENDINGS)


def _import(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _missing(module, package) from error


def _missing(module: str, package: str) -> MetricError:
    return MetricError(f"no module {module}: {package} is not installed; it comes with pip install -e '.[evaluate]'")
