"""What each batch holds: pictures, captions and everything drawn by chance, all from the run's seed and its number.

No batch depends on the one before, so a run that goes on from a saved state needs no more than the number of the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

# Separate streams of chance: the order of an epoch, and the draws of a batch.
_ORDER, _DRAWS = 0, 1


@dataclass(frozen=True)
class Batch:
    """One batch, on the CPU.

    pictures: what `Batches.pictures` gives for its rows, as a tensor [rows, …]
    texts: what `Batches.texts` gives for its captions, [rows, …]
    negatives: likewise for the texts that guidance leads away from, most of them empty
    posterior_noise: [rows, channels, height, width] float32; picks the latents from the VAE's distribution
    noise: the same shape; what the U-Net is to see through
    timesteps: [rows] int64
    """

    pictures: Tensor
    texts: Tensor
    negatives: Tensor
    posterior_noise: Tensor
    noise: Tensor
    timesteps: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})

    def pin_memory(self) -> Batch:
        """The same in page-locked memory; DataLoader calls this."""
        return Batch(**{name: tensor.pin_memory() for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class Batches(TorchDataset[Batch]):
    """All batches of pictures of one size, by number."""

    captions: Sequence[Sequence[str]]
    """Of each picture one or more, of which a batch takes one."""
    pictures: Callable[[Sequence[int]], Tensor]
    """By the numbers of the pictures."""
    texts: Callable[[Sequence[str]], Tensor]
    """By the captions."""
    size: int
    """Rows of a batch."""
    latent_shape: tuple[int, int, int]
    timesteps: int
    caption_dropout: float
    seed: int
    noise_bias: float = 0.0
    """Timesteps are drawn with a density in proportion to their power of this."""
    negatives: float = 0.0
    """Share of the rows whose guidance leads away from another picture's caption instead of none."""
    _orders: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getitem__(self, number: int) -> Batch:
        """The batch of this number, from 0 on without end. Each epoch takes all pictures, in an order of its own."""
        rows = [self._row(position) for position in range(number * self.size, (number + 1) * self.size)]
        chance = np.random.default_rng((self.seed, _DRAWS, number))
        dropped = chance.random(self.size) < self.caption_dropout
        # The power may round up to 1.
        places = np.minimum(chance.random(self.size) ** (1 / (1 + self.noise_bias)), 1 - 1e-9)
        timesteps = (self.timesteps * places).astype(np.int64)
        noises = chance.standard_normal((2, self.size, *self.latent_shape), dtype=np.float32)
        wordings = [self.captions[row][chance.integers(len(self.captions[row]))] for row in rows]
        captions = ["" if drop else wording for drop, wording in zip(dropped, wordings, strict=True)]
        led_away = chance.random(self.size) < self.negatives
        others = chance.integers(len(self.captions), size=self.size)
        negatives = [self.captions[other][0] if led else "" for led, other in zip(led_away, others, strict=True)]
        return Batch(
            pictures=self.pictures(rows),
            texts=self.texts(captions),
            negatives=self.texts(negatives),
            posterior_noise=torch.from_numpy(noises[0]),
            noise=torch.from_numpy(noises[1]),
            timesteps=torch.from_numpy(timesteps),
        )

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, len(self.captions))
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = np.random.default_rng((self.seed, _ORDER, epoch)).permutation(len(self.captions))
        return int(self._orders[epoch][place])


@dataclass(frozen=True)
class InTurn(TorchDataset[Batch]):
    """All batches of a run, by number: of each size one, again and again."""

    sizes: Sequence[Batches]

    def __getitem__(self, number: int) -> Batch:
        """The batch of this number, from 0 on without end."""
        turn, size = divmod(number, len(self.sizes))
        return self.sizes[size][turn]

    def loader(self, numbers: range, *, workers: int, pin_memory: bool) -> Iterator[Batch]:
        """The batches of these numbers in their order, read ahead by `workers` processes (0: none)."""
        return iter(DataLoader(self, batch_size=None, sampler=numbers, num_workers=workers, pin_memory=pin_memory))
