"""Last stage: latents to image files. Equal sizes of a batch share VAE calls."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from tiny_sd_engine.device import limit_threads, select_device
from tiny_sd_engine.errors import Cancelled, EngineError
from tiny_sd_engine.images import encode, image_parameters
from tiny_sd_engine.jobs import Board, Stage
from tiny_sd_engine.settings import DEFAULT_SIZE, Settings
from tiny_sd_engine.vae import VaeDecoder


class TritonPythonModel:
    """Triton's interface to the VAE decoder stage."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the decoder half of the checkpoint's VAE."""
        settings = Settings.from_environment()
        limit_threads(settings.threads)
        device = select_device(args["model_instance_kind"], int(args["model_instance_device_id"]), settings.precision)
        self._vae = VaeDecoder(settings.checkpoint, device)
        self._vae.warm_up(DEFAULT_SIZE, DEFAULT_SIZE)
        self._board = Board.of_this_server(settings.jobs_dir)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests that are still wanted, and take all of them off the job board."""
        ids = [_array(request, "job_id")[0].decode("utf-8", "replace") for request in requests]
        with self._board.at_work(Stage.DECODING, ids):
            stops = self._board.take_up(Stage.DECODING, ids)
            wanted = [request for id, request in zip(ids, requests, strict=True) if id not in stops]
            answers = iter(self._decode(wanted) if wanted else [])
        self._board.remove(ids)
        return [_stopped(stops[id]) if id in stops else next(answers) for id in ids]

    def _decode(self, requests: list[Any]) -> list[Any]:
        """Decode all images together, or if that fails each request's own; encode each request's own."""
        latents = [list(torch.from_numpy(_array(request, "latents")).unbind()) for request in requests]
        try:
            pixels = iter(self._vae.decode([image for own in latents for image in own]))
        except Exception as error:  # nothing raises out of execute
            if len(requests) == 1:
                return [_failure(error)]
            pixels = None
        if pixels is None:  # only now is the error gone, whose traceback holds the memory of the failed call
            return [answer for request in requests for answer in self._decode([request])]
        return [_respond(request, [next(pixels) for _ in own]) for request, own in zip(requests, latents, strict=True)]


def _respond(request: Any, pixels: list[np.ndarray]) -> Any:
    try:
        image_format = _array(request, "image_format")[0].decode()
        parameters = json.loads(_array(request, "parameters")[0])
        files = [encode(image, image_format, image_parameters(parameters, i)) for i, image in enumerate(pixels)]
        if _array(request, "base64")[0]:
            files = [base64.b64encode(file) for file in files]
        return pb_utils.InferenceResponse([pb_utils.Tensor("image", np.array([files], np.object_))])
    except Exception as error:  # one request's files must not cost its neighbours theirs
        return _failure(error)


def _stopped(reason: EngineError) -> Any:
    kind = pb_utils.TritonError
    code = kind.CANCELLED if isinstance(reason, Cancelled) else kind.UNAVAILABLE
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(reason), code))


def _failure(error: Exception) -> Any:
    pb_utils.Logger.log_error(f"vae_decoder: {error!r}")
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError("the VAE decoder failed", pb_utils.TritonError.INTERNAL)
    )


def _array(request: Any, name: str) -> np.ndarray:
    """An input of a request, whose batch size is always 1."""
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0]
