"""Token windows → embeddings, with emphasis."""

from __future__ import annotations

from pathlib import Path

import torch

from tiny_sd_engine import checkpoint
from tiny_sd_engine.device import Device
from tiny_sd_engine.prompts import tokenize


class TextEncoder:
    """A checkpoint's CLIP text model."""

    def __init__(self, path: Path, device: Device) -> None:
        self._model = checkpoint.load_text_encoder(path, device)
        self._device = device
        nothing = tokenize(checkpoint.load_tokenizer(path), "", "").prompt.ids
        # [length, hidden]: what an empty prompt becomes. Computing it warms the model up as well.
        self._blank = self._encode(torch.from_numpy(nothing))[0]

    def embed(self, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Embed token windows, of one prompt or of many.

        ids: [windows, length] int64; weights: [windows, length] float32. Returns [windows, length, hidden] float32 on
        the CPU. A window that occurs several times is computed once.
        """
        distinct, where = torch.unique(ids, dim=0, return_inverse=True)
        embeddings = self._encode(distinct)[where]
        # Emphasis moves a token's embedding away from (or towards) what the empty prompt has in its place. Rescaling
        # the whole window to its former mean instead, as some tools do, divides by a number that may be near zero.
        plain = (weights == 1.0).all(dim=1)
        moved = self._blank + weights[..., None] * (embeddings - self._blank)
        return torch.where(plain[:, None, None], embeddings, moved)

    @torch.inference_mode()
    def _encode(self, ids: torch.Tensor) -> torch.Tensor:
        calls = torch.split(ids.to(self._device.torch_device), self._device.windows_per_encode)
        return torch.cat([self._model(call).last_hidden_state for call in calls]).float().cpu()
