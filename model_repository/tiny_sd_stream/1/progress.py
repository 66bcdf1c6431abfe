"""What a stream tells its caller before the pictures."""

from __future__ import annotations

import base64
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from tiny_sd_engine.jobs import Board

_HEARTBEAT_S = 10.0
"""An event comes at least so often, lest a proxy take the silence for the end."""


class Progress:
    """What the caller has been told, and what there is to tell."""

    def __init__(self, board: Board, id: str, request: Any) -> None:
        self._board = board
        self._id = id
        as_text = pb_utils.get_input_tensor_by_name(request, "base64")
        self._raw = as_text is not None and not as_text.as_numpy().flat[0]
        self._told: tuple[str, int] | None = None
        self._told_at = 0.0
        self._preview_step = 0

    def event(self) -> list[Any] | None:
        """The tensors of the next event, if one is due. Raises UnknownJob."""
        entry = self._board.find(self._id)
        preview = self._board.preview(self._id, self._preview_step)
        silent = time.monotonic() - self._told_at
        if (entry.stage, entry.step) == self._told and not preview and silent < _HEARTBEAT_S:
            return None
        self._told, self._told_at = (entry.stage, entry.step), time.monotonic()
        progress = {"seconds": entry.seconds, "left": entry.seconds_left}
        tensors = told(self._id, entry.stage.value, entry.step, entry.steps, **progress)
        if preview:
            self._preview_step = preview.step
            files = [base64.b64decode(file) if self._raw else file.encode() for file in preview.files]
            tensors.append(pb_utils.Tensor("preview", np.array([files], np.object_)))
        return tensors


def told(id: str, stage: str, step: int, steps: int, *, seconds: float, left: float | None) -> list[Any]:
    """An event's tensors, but its pictures."""
    return [
        pb_utils.Tensor("job_id", np.array([[id.encode()]], np.object_)),
        pb_utils.Tensor("stage", np.array([[stage.encode()]], np.object_)),
        pb_utils.Tensor("step", np.array([[step]], np.int32)),
        pb_utils.Tensor("steps", np.array([[steps]], np.int32)),
        pb_utils.Tensor("seconds", np.array([[seconds]], np.float64)),
        pb_utils.Tensor("seconds_left", np.array([[-1.0 if left is None else left]], np.float64)),
    ]
