"""Token windows → embeddings, with emphasis. Those of late prompts are kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from cachetools import LRUCache

from tiny_sd_engine import checkpoint
from tiny_sd_engine.device import Device
from tiny_sd_engine.prompts import Windows, tokenize


class TextEncoder:
    """A checkpoint's CLIP text model. Not for several threads at once."""

    def __init__(self, path: Path, device: Device, cache_bytes: int = 256 * 2**20) -> None:
        """``cache_bytes``: for the embeddings of late prompts; a window of Tiny-SD takes 231 KiB."""
        self._cache = LRUCache[tuple[bytes, bytes], torch.Tensor](cache_bytes, getsizeof=lambda made: made.nbytes)
        self._model = checkpoint.load_text_encoder(path, device)
        self._device = device
        nothing = tokenize(checkpoint.load_tokenizer(path), "", "").prompt.ids
        # [length, hidden]: what an empty prompt becomes. Computing it warms the model up as well.
        self._blank = self._encode(torch.from_numpy(nothing))[0]

    def encode(self, prompts: Sequence[Windows]) -> tuple[list[torch.Tensor], int]:
        """Embed prompts: [windows * length, hidden] float32 on the CPU for each, not to be written to.

        Those that were not among the latest are computed together; also returns how many these were.
        """
        keys = [(prompt.ids.tobytes(), prompt.weights.tobytes()) for prompt in prompts]
        embeddings = {key: self._cache[key] for key in keys if key in self._cache}
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in embeddings}
        if missing:
            ids = torch.cat([torch.from_numpy(prompt.ids) for prompt in missing.values()])
            weights = torch.cat([torch.from_numpy(prompt.weights) for prompt in missing.values()])
            own = torch.split(self.embed(ids, weights), [len(prompt.ids) for prompt in missing.values()])
            for key, windows in zip(missing, own, strict=True):
                embeddings[key] = windows.flatten(0, 1).clone()  # a view would keep the whole batch in memory
                with suppress(ValueError):  # larger than all of the cache
                    self._cache[key] = embeddings[key]
        return [embeddings[key] for key in keys], len(missing)

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
