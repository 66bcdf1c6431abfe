"""Second stage: token windows to embeddings, all prompts of a batch in one call; those of late ones are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from tiny_sd_engine.device import limit_threads, select_device
from tiny_sd_engine.jobs import Board
from tiny_sd_engine.prompts import Windows
from tiny_sd_engine.settings import Settings
from tiny_sd_engine.text_encoder import TextEncoder


class TritonPythonModel:
    """Triton's interface to the text encoder stage."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the checkpoint's text encoder."""
        settings = Settings.from_environment()
        limit_threads(settings.threads)
        device = select_device(args["model_instance_kind"], int(args["model_instance_device_id"]), settings.precision)
        self._encoder = TextEncoder(settings.checkpoint, device, settings.text_cache_mb * 2**20)
        self._board = Board.of_this_server(settings.jobs_dir)
        self._families: list[Any] = []  # Triton drops a family's series when Python drops the family
        self._texts = self._counter(args, "texts_total", "Prompts and negative prompts, each by itself")
        self._encoded = self._counter(args, "texts_encoded_total", "Those of them that were not among the latest")

    def finalize(self) -> None:
        """Give the series up while Triton can be told; one that outlives the model ends its process by a fault."""
        del self._texts, self._encoded, self._families

    def execute(self, requests: list[Any]) -> list[Any]:
        """Embed the texts of all requests together; if that fails, each request's own."""
        texts = [_windows(request, side) for request in requests for side in ("prompt", "negative")]
        try:
            with self._board.encoding_texts():
                embeddings, encoded = self._encoder.encode(texts)
        except Exception as error:  # nothing raises out of execute
            pb_utils.Logger.log_error(f"text_encoder: {error!r}")
            if len(requests) > 1:
                return [answer for request in requests for answer in self.execute([request])]
            self._board.remove([_job_id(requests[0])])
            failure = pb_utils.TritonError("the text encoder failed", pb_utils.TritonError.INTERNAL)
            return [pb_utils.InferenceResponse(error=failure)]
        self._texts.increment(len(texts))
        self._encoded.increment(encoded)
        self._board.encoded([_job_id(request) for request in requests])
        return [_respond(*pair) for pair in zip(embeddings[::2], embeddings[1::2], strict=True)]

    def _counter(self, args: dict[str, str], name: str, description: str) -> Any:
        """Labelled as Triton labels its own."""
        counter = pb_utils.MetricFamily.COUNTER
        family = pb_utils.MetricFamily(name=f"tiny_sd_{name}", description=description, kind=counter)
        self._families.append(family)
        labels = {"model": "model_name", "version": "model_version", "instance": "model_instance_name"}
        return family.Metric(labels={label: args[key] for label, key in labels.items()})


def _windows(request: Any, side: str) -> Windows:
    return Windows(_array(request, f"{side}_ids"), _array(request, f"{side}_weights"))


def _job_id(request: Any) -> str:
    id: str = _array(request, "job_id")[0].decode("utf-8", "replace")
    return id


def _respond(prompt_embeds: torch.Tensor, negative_embeds: torch.Tensor) -> Any:
    own = {"prompt_embeds": prompt_embeds, "negative_embeds": negative_embeds}
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, made[None].numpy()) for name, made in own.items()])


def _array(request: Any, name: str) -> np.ndarray:
    """An input of a request, whose batch size is always 1."""
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0]
