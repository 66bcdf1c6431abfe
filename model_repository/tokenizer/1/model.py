"""First stage: the documented parameters, checked and resolved, as the tensors that the later stages take.

It also admits the generation to the job board, or refuses it when the server is full.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from tiny_sd_client.parameters import InvalidParameter, Parameters, parse
from tiny_sd_engine.checkpoint import load_tokenizer
from tiny_sd_engine.errors import Busy, DuplicateId, InvalidInput
from tiny_sd_engine.jobs import Board, job_id, preview_interval
from tiny_sd_engine.prompts import PromptTokens, tokenize
from tiny_sd_engine.settings import Settings

# What Triton's own front ends and tiny_sd_stream put among a request's parameters; all else is a caller's typing error.
_ALLOWED = {"id", "timeout", "priority", "preview_every"}


class TritonPythonModel:
    """Triton's interface to the tokenizer stage."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the checkpoint's tokenizer."""
        settings = Settings.from_environment()
        self._tokenizer = load_tokenizer(settings.checkpoint)
        self._sizes = settings.sizes
        self._max_in_flight = settings.max_in_flight
        self._board = Board.of_this_server(settings.jobs_dir)
        self._refusals = pb_utils.MetricFamily(
            name="tiny_sd_jobs_refused_total",
            description="Generations refused because the server was full",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self._refused = self._refusals.Metric(labels={"model": args["model_name"], "version": args["model_version"]})
        tokenize(self._tokenizer, "warm-up", "")

    def finalize(self) -> None:
        """Give the series up while Triton can be told; one that outlives the model ends its process by a fault."""
        del self._refused, self._refusals

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself: there is nothing to share."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            extras = _request_parameters(request)
            parameters = parse(_values(request), self._sizes).resolved()
            tokens = tokenize(self._tokenizer, parameters.prompt, parameters.negative_prompt)
            id, deadline = job_id(request.request_id()), _deadline(request, extras)
            tensors = {
                **_tensors(parameters, tokens),
                "deadline": np.array([deadline], np.float64),
                "job_id": _text(id),
                "preview_every": np.array([preview_interval(extras.get("preview_every", 0))], np.int32),
            }
            self._board.admit(id, parameters.num_inference_steps, deadline, self._max_in_flight)
            return pb_utils.InferenceResponse([pb_utils.Tensor(name, each[None]) for name, each in tensors.items()])
        except DuplicateId as error:
            return _refusal(str(error), pb_utils.TritonError.ALREADY_EXISTS)
        except (InvalidParameter, InvalidInput) as error:
            return _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        except Busy as error:
            self._refused.increment(1)
            return _refusal(str(error), pb_utils.TritonError.UNAVAILABLE)
        except Exception as error:  # nothing raises out of execute: it would fail the whole batch
            pb_utils.Logger.log_error(f"tokenizer: {error!r}")
            return _refusal("the tokenizer failed", pb_utils.TritonError.INTERNAL)


def _request_parameters(request: Any) -> dict[str, Any]:
    """What came beside the tensors. Raises InvalidParameter for a sequence id or an unknown name."""
    extras: dict[str, Any] = json.loads(request.parameters() or "{}")
    if request.correlation_id() or any(name.startswith("sequence_") for name in extras):
        # Triton numbers the sequences of the U-Net itself; a number of the caller's own makes the ensemble hang.
        raise InvalidParameter("sequence_id", "not allowed; every generation is one request")
    for name in extras.keys() - _ALLOWED:
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
    if type(timeout) is not int or timeout < 0:
        raise InvalidParameter("timeout", f"got {str(timeout)[:40]!r}; allowed: whole microseconds")
    return time.time() + timeout / 1e6 if timeout else 0.0


def _tensors(parameters: Parameters, tokens: PromptTokens) -> dict[str, np.ndarray]:
    seeds = [parameters.seed + i for i in range(parameters.samples)]
    return {
        "prompt_ids": tokens.prompt.ids,
        "prompt_weights": tokens.prompt.weights,
        "negative_ids": tokens.negative_prompt.ids,
        "negative_weights": tokens.negative_prompt.weights,
        "seeds": np.array(seeds, np.int64),
        "parameters": _text(json.dumps(parameters.picture(), ensure_ascii=False)),
        "scheduler": _text(parameters.scheduler.value),
        "num_inference_steps": np.array([parameters.num_inference_steps], np.int32),
        "guidance_scale": np.array([parameters.guidance_scale], np.float32),
        "img_width": np.array([parameters.img_width], np.int32),
        "img_height": np.array([parameters.img_height], np.int32),
        "base64": np.array([parameters.base64], np.bool_),
        "image_format": _text(parameters.image_format.value),
    }


def _text(value: str) -> np.ndarray:
    return np.array([value.encode("utf-8")], np.object_)


def _refusal(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
