"""First stage: the documented parameters, checked and resolved, as the tensors that the later stages take."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from tiny_sd_client.parameters import InvalidParameter, Parameters, parse
from tiny_sd_engine.checkpoint import load_tokenizer
from tiny_sd_engine.errors import InvalidInput
from tiny_sd_engine.prompts import PromptTokens, tokenize
from tiny_sd_engine.settings import Settings

# What Triton's own front ends put among a request's parameters; all else there is a caller's typing error.
_TRITONS_OWN = {"id", "timeout", "priority"}


class TritonPythonModel:
    """Triton's interface to the tokenizer stage."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the checkpoint's tokenizer."""
        settings = Settings.from_environment()
        self._tokenizer = load_tokenizer(settings.checkpoint)
        self._sizes = settings.sizes
        tokenize(self._tokenizer, "warm-up", "")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself: there is nothing to share."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            extras = _request_parameters(request)
            parameters = parse(_values(request), self._sizes).resolved()
            tokens = tokenize(self._tokenizer, parameters.prompt, parameters.negative_prompt)
            return pb_utils.InferenceResponse(_tensors(parameters, tokens, _deadline(request, extras)))
        except (InvalidParameter, InvalidInput) as error:
            return _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # nothing raises out of execute: it would fail the whole batch
            pb_utils.Logger.log_error(f"tokenizer: {error!r}")
            return _refusal("the tokenizer failed", pb_utils.TritonError.INTERNAL)


def _request_parameters(request: Any) -> dict[str, Any]:
    """What came beside the tensors. Raises InvalidParameter for a sequence id or an unknown name."""
    extras: dict[str, Any] = json.loads(request.parameters() or "{}")
    if request.correlation_id() or any(name.startswith("sequence_") for name in extras):
        # Triton numbers the sequences of the U-Net itself; a number of the caller's own makes the ensemble hang.
        raise InvalidParameter("sequence_id", "not allowed; every generation is one request")
    for name in extras.keys() - _TRITONS_OWN:
        raise InvalidParameter(name[:64], f"unknown parameter; allowed: {', '.join(Parameters.model_fields)}")
    return extras


def _values(request: Any) -> dict[str, object]:
    """The inputs that the caller sent, as Python values."""
    values: dict[str, object] = {}
    for name in Parameters.model_fields:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            continue
        array = tensor.as_numpy()
        if array.size != 1:
            raise InvalidParameter(name, f"got {array.size} values; allowed: one; send one request for each generation")
        value = array.flat[0]
        if isinstance(value, bytes):
            try:
                values[name] = value.decode("utf-8")
            except UnicodeDecodeError:
                raise InvalidParameter(name, "got bytes that are not UTF-8; allowed: UTF-8 text") from None
        elif isinstance(value, np.float32):
            values[name] = float(str(value))  # 7.3, not 7.300000190734863
        else:
            values[name] = value.item()
    return values


def _deadline(request: Any, extras: dict[str, Any]) -> float:
    """Unix time in seconds at which the caller's ``timeout`` (microseconds) is over; 0: none.

    Triton's ``generate`` leaves the timeout among the parameters.
    """
    timeout = request.timeout() or extras.get("timeout", 0)
    if not isinstance(timeout, int) or timeout < 0:
        raise InvalidParameter("timeout", f"got {str(timeout)[:40]!r}; allowed: whole microseconds")
    return time.time() + timeout / 1e6 if timeout else 0.0


def _tensors(parameters: Parameters, tokens: PromptTokens, deadline: float) -> list[Any]:
    seeds = [parameters.seed + i for i in range(parameters.samples)]
    arrays = {
        "prompt_ids": tokens.prompt.ids,
        "prompt_weights": tokens.prompt.weights,
        "negative_ids": tokens.negative_prompt.ids,
        "negative_weights": tokens.negative_prompt.weights,
        "seeds": np.array(seeds, np.int64),
        "deadline": np.array([deadline], np.float64),
        "parameters": _text(json.dumps(parameters.picture(), ensure_ascii=False)),
        "scheduler": _text(parameters.scheduler.value),
        "num_inference_steps": np.array([parameters.num_inference_steps], np.int32),
        "guidance_scale": np.array([parameters.guidance_scale], np.float32),
        "img_width": np.array([parameters.img_width], np.int32),
        "img_height": np.array([parameters.img_height], np.int32),
        "base64": np.array([parameters.base64], np.bool_),
        "image_format": _text(parameters.image_format.value),
    }
    return [pb_utils.Tensor(name, array[None]) for name, array in arrays.items()]


def _text(value: str) -> np.ndarray:
    return np.array([value.encode("utf-8")], np.object_)


def _refusal(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
