"""From pictures to latents and from captions to embeddings: in each step, or once into a cache.

Each way has two halves: what a batch reads on the CPU, and what the device makes of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from distillation import cache
from distillation.data import Pictures
from distillation.networks import Networks
from distillation.options import Options
from distillation.reporter import Reporter

_PICTURES_AT_ONCE = 4
_TEXTS_AT_ONCE = 64

Item = TypeVar("Item", int, str)


@dataclass(frozen=True)
class Way(Generic[Item]):
    """How pictures, by number, or texts reach the U-Net."""

    read: Callable[[Sequence[Item]], Tensor]
    """On the CPU, in any process."""
    encode: Callable[[Tensor], Tensor]
    """On the device."""


def latents_each_time(networks: Networks, pictures: Pictures, size: int) -> Way[int]:
    """Pictures with an edge of `size` pixels go through the VAE in each step.

    It gives [rows, 2 · channels, h, w]: means and log variances.
    """

    def read(numbers: Sequence[int]) -> Tensor:
        pixels = np.stack([pictures.picture(number, size) for number in numbers])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        # In small groups: the VAE's activations are the largest of the run.
        groups = (pixels.float() / 127.5 - 1).split(_PICTURES_AT_ONCE)
        return torch.cat([networks.vae.encode(group).latent_dist.parameters for group in groups])

    return Way(read, encode)


def embeddings_each_time(networks: Networks, text_encoder: Callable[..., Any]) -> Way[str]:
    """Tokens go through the text encoder in each step. It gives [rows, tokens, width].

    text_encoder: `networks.text_encoder` itself, or what accelerate made of it
    """

    def read(texts: Sequence[str]) -> Tensor:
        tokens = networks.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=networks.tokenizer.model_max_length,
            return_tensors="pt",
        )
        return tokens.input_ids

    return Way(read, lambda ids: text_encoder(ids)[0])


def latents_once(networks: Networks, pictures: Pictures, size: int, options: Options, reporter: Reporter) -> Way[int]:
    """What `latents_each_time` gives, from an array in the cache folder that is made first if it is missing."""
    each_time = latents_each_time(networks, pictures, size)
    array = cache.stored(
        latents_file(options.cache, pictures, size, options.checkpoint / "vae"),
        len(pictures.captions),
        lambda numbers: each_time.encode(each_time.read(numbers).to(networks.vae.device)),
        at_once=_PICTURES_AT_ONCE,
        begin=lambda count: reporter.begin(f"Encoding pictures of {size} pixels", count),
    )
    return Way(lambda numbers: cache.rows(array, numbers), _as_it_is)


def latents_file(folder: Path, pictures: Pictures, size: int, vae: Path) -> Path:
    """Where the cache folder keeps the latents of pictures with such an edge, as the autoencoder in a folder gives."""
    return folder / f"latents-{cache.key(pictures.fingerprint, str(size), vae)}.npy"


def embeddings_once(
    each_time: Way[str], networks: Networks, pictures: Pictures, options: Options, reporter: Reporter
) -> Way[str]:
    """What `each_time` gives, from an array in the cache folder that is made first if it is missing."""
    texts = sorted({"", *(text for wordings in pictures.captions for text in wordings)})
    sources = json.dumps(texts), options.checkpoint / "tokenizer", options.checkpoint / "text_encoder"
    array = cache.stored(
        options.cache / f"embeddings-{cache.key(*sources)}.npy",
        len(texts),
        lambda numbers: each_time.encode(
            each_time.read([texts[number] for number in numbers]).to(networks.text_encoder.device)
        ),
        at_once=_TEXTS_AT_ONCE,
        begin=lambda count: reporter.begin("Encoding captions", count),
    )
    places = {text: number for number, text in enumerate(texts)}
    return Way(lambda wanted: cache.rows(array, [places[text] for text in wanted]), _as_it_is)


def _as_it_is(values: Tensor) -> Tensor:
    return values
