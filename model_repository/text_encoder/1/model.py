"""Second stage: token windows to embeddings, all prompts of a batch in one call."""

from __future__ import annotations

from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from tiny_sd_engine.device import limit_threads, select_device
from tiny_sd_engine.jobs import Board
from tiny_sd_engine.settings import Settings
from tiny_sd_engine.text_encoder import TextEncoder


class TritonPythonModel:
    """Triton's interface to the text encoder stage."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the checkpoint's text encoder."""
        settings = Settings.from_environment()
        limit_threads(settings.threads)
        device = select_device(args["model_instance_kind"], int(args["model_instance_device_id"]), settings.precision)
        self._encoder = TextEncoder(settings.checkpoint, device)
        self._board = Board.of_this_server(settings.jobs_dir)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Embed the windows of all requests together; if that fails, each request's own."""
        ids = [_windows(request, "ids") for request in requests]
        weights = [_windows(request, "weights") for request in requests]
        try:
            with self._board.encoding_texts():
                embeddings = self._encoder.embed(torch.cat(ids), torch.cat(weights))
        except Exception as error:  # nothing raises out of execute
            pb_utils.Logger.log_error(f"text_encoder: {error!r}")
            if len(requests) > 1:
                return [answer for request in requests for answer in self.execute([request])]
            failure = pb_utils.TritonError("the text encoder failed", pb_utils.TritonError.INTERNAL)
            return [pb_utils.InferenceResponse(error=failure)]
        own = embeddings.split([len(windows) for windows in ids])
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("embeddings", windows.flatten(0, 1)[None].numpy())])
            for windows in own
        ]


def _windows(request: Any, name: str) -> torch.Tensor:
    """[windows, length] of one request."""
    return torch.from_numpy(pb_utils.get_input_tensor_by_name(request, name).as_numpy())[0]
