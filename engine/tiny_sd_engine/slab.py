"""The device memory of images in flight, and the step that takes them on with as many operations for one as for many.

What a step needs of an image lies on the device from its admission on. So the CPU hands over who takes part, and the
noise of those that draw some; it reads nothing back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tiny_sd_engine.device import Device
from tiny_sd_engine.schedulers import HISTORY, NOISE_SLOT, Schedule, latents_slot, prediction_slot

Unet = Callable[..., tuple[torch.Tensor, ...]]
"""(latents [rows, channels, h, w], timesteps [rows], embeddings [rows, tokens, hidden], return_dict=False) →
(prediction [rows, channels, h, w], …)."""

_FIRST_SLOTS = 4
_NEGATIVE, _PROMPT = 0, 1


class Slab:
    """Memory for images that may share a U-Net call: those of one shape and one number of tokens.

    Each has a slot. There are as many as were ever taken at a time, to the next power of two; who keeps the slab keeps
    them all. Slots may be given back from any thread, at any moment.
    """

    def __init__(self, shape: tuple[int, int, int], text: tuple[int, int], evaluations: int, device: Device) -> None:
        """shape: channels, h, w of the latents. text: tokens, hidden. evaluations: most of an image."""
        self.shape = shape
        self.device = device
        self.evaluations = evaluations
        self._free: list[int] = []
        at = device.torch_device
        self.history = torch.zeros(0, HISTORY, shape[0] * self.area, device=at)
        """[slots, HISTORY, channels * h * w] float32; see :class:`tiny_sd_engine.schedulers.Schedule`."""
        self.table = torch.zeros(0, evaluations, HISTORY + 2, device=at)
        """[slots, evaluations, HISTORY + 2] float32: coefficients, input scale and timestep of each evaluation."""
        self.position = torch.zeros(0, dtype=torch.int64, device=at)
        """[slots] int64: evaluations done."""
        self.texts = torch.zeros(0, 2, *text, dtype=device.dtype, device=at)
        """[slots, 2, tokens, hidden] in the U-Net's precision: negative prompt, prompt."""
        self.guidance = torch.zeros(0, device=at)
        """[slots] float32: guidance scale."""
        # Where `latents_slot` and `prediction_slot` put evaluation j: [evaluations + 1] int64.
        self._latents_slots = torch.tensor([latents_slot(j) for j in range(evaluations + 1)], device=at)
        self._prediction_slots = torch.tensor([prediction_slot(j) for j in range(evaluations + 1)], device=at)

    @property
    def area(self) -> int:
        """Latents of a channel."""
        return self.shape[1] * self.shape[2]

    def take(self) -> int:
        """A slot; its memory holds what the one before left there."""
        if not self._free:
            self._grow()
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        """Let the next image have it."""
        self._free.append(slot)

    def put(
        self, slot: int, latents: torch.Tensor, table: torch.Tensor, texts: torch.Tensor, guidance_scale: float
    ) -> None:
        """Fill a slot for an image that begins.

        latents: [channels, h, w] float32, the first. table: see :func:`table_of`. texts: [2, tokens, hidden], negative
        prompt and prompt. All on any device.
        """
        self.history[slot].zero_()  # also since a NaN that was left there would be one times a coefficient of 0, too
        self.history[slot, latents_slot(0)].copy_(latents.flatten())
        self.table[slot, : len(table)].copy_(table)
        self.position[slot].zero_()
        self.texts[slot].copy_(texts)
        self.guidance[slot].fill_(guidance_scale)

    def past(self, slot: int) -> torch.Tensor:
        """[HISTORY, channels, h, w] float32: an image's history, not a copy of it."""
        return self.history[slot].view(HISTORY, *self.shape)

    def _grow(self) -> None:
        old = len(self.history)
        slots = max(_FIRST_SLOTS, 2 * old)

        def larger(memory: torch.Tensor) -> torch.Tensor:
            grown = torch.zeros(slots, *memory.shape[1:], dtype=memory.dtype, device=memory.device)
            grown[:old].copy_(memory)
            return grown

        # All or none: there may be no memory for the last one.
        every = [larger(each) for each in (self.history, self.table, self.position, self.texts, self.guidance)]
        self.history, self.table, self.position, self.texts, self.guidance = every
        self._free.extend(reversed(range(old, slots)))


def table_of(schedule: Schedule) -> torch.Tensor:
    """[E, HISTORY + 2] float32: a slab's entries for an image of this schedule."""
    return torch.cat([schedule.coefficients, schedule.input_scale[:, None], schedule.timesteps[:, None]], dim=1)


def call_of(slots: Sequence[int], rows: Sequence[int]) -> torch.Tensor:
    """[3 * images + 2 * rows in all] int64: who takes part in a step.

    Slot, first row and last row of each image; then image and text of each row. rows: of each image, 1 (the prompt
    alone) or 2 (guided by the negative prompt).
    """
    first: list[int] = []
    image: list[int] = []
    text: list[int] = []
    for index, count in enumerate(rows):
        first.append(len(image))
        image += [index] * count
        text += (_NEGATIVE, _PROMPT)[-count:]
    last = [start + count - 1 for start, count in zip(first, rows, strict=True)]
    return torch.tensor([*slots, *first, *last, *image, *text])


def step(slab: Slab, unet: Unet, call: torch.Tensor, images: int, noise: torch.Tensor | None = None) -> None:
    """Take images an evaluation on, in one call of the U-Net. The slab changes last: a step that fails can be repeated.

    call: see :func:`call_of`, on the slab's device. images: how many. noise: [k, channels * h * w] float32 on the
    device, of the first k images of the call; None: no one's schedule draws any.
    """
    slots, first, last = call[: 3 * images].view(3, images).unbind()
    image, text = call[3 * images :].view(2, -1).unbind()
    memory = slab.history.flatten(0, 1)  # [slots * HISTORY, channels * h * w], not a copy
    own = slots * HISTORY
    done = slab.position.index_select(0, slots)
    entries = slab.table.flatten(0, 1).index_select(0, slots * slab.evaluations + done)
    coefficients, scale, timesteps = entries[:, :HISTORY], entries[:, HISTORY, None], entries[:, HISTORY + 1]

    latents = memory.index_select(0, own + slab._latents_slots.index_select(0, done))
    rows = (latents * scale).index_select(0, image).view(-1, *slab.shape)
    predictions = unet(
        rows.to(slab.device.dtype, memory_format=torch.channels_last),
        timesteps.index_select(0, image),
        slab.texts.flatten(0, 1).index_select(0, slots.index_select(0, image) * 2 + text),
        return_dict=False,
    )[0]
    predictions = predictions.float().flatten(1)
    # Classifier-free guidance (Ho and Salimans, 2022). Of an image with one row, both are that row, and so is the sum.
    free, told = predictions.index_select(0, first), predictions.index_select(0, last)
    guided = free + slab.guidance.index_select(0, slots)[:, None] * (told - free)

    # These two go where nothing is that this evaluation looks back on.
    memory.index_copy_(0, own + slab._prediction_slots.index_select(0, done), guided)
    if noise is not None:
        memory.index_copy_(0, own[: len(noise)] + NOISE_SLOT, noise)
    following = torch.bmm(coefficients[:, None], slab.history.index_select(0, slots))[:, 0]
    memory.index_copy_(0, own + slab._latents_slots.index_select(0, done + 1), following)
    slab.position.index_copy_(0, slots, done + 1)
