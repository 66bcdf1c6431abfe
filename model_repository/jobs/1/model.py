"""The job board for callers: which generations are in flight, how far they are; cancel one."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from tiny_sd_engine.errors import InvalidInput, UnknownJob
from tiny_sd_engine.jobs import Board, Entry
from tiny_sd_engine.settings import Settings

_UNKNOWN = -1.0


class TritonPythonModel:
    """Triton's interface to the job board."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the board."""
        settings = Settings.from_environment()
        self._max_in_flight = settings.max_in_flight
        self._board = Board.of_this_server(settings.jobs_dir)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            entries = self._act(_text(request, "action"), _text(request, "job_id"))
            return pb_utils.InferenceResponse(_tensors(entries, self._max_in_flight))
        except InvalidInput as error:
            return _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        except UnknownJob as error:
            return _refusal(str(error), pb_utils.TritonError.NOT_FOUND)
        except Exception as error:  # nothing raises out of execute
            pb_utils.Logger.log_error(f"jobs: {error!r}")
            return _refusal("the job board failed", pb_utils.TritonError.INTERNAL)

    def _act(self, action: str, job_id: str) -> list[Entry]:
        if action == "list":
            return self._board.entries()
        acts = {"status": self._board.find, "cancel": self._board.cancel}
        if action not in acts:
            raise InvalidInput("action", f"got {action[:40]!r}; allowed: list, {', '.join(acts)}")
        if not job_id:
            raise InvalidInput("job_id", f"is required to {action}; allowed: the id of a generation in flight")
        return [acts[action](job_id)]


def _text(request: Any, name: str) -> str:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return tensor.as_numpy().flat[0].decode("utf-8", "replace") if tensor is not None else ""


def _tensors(entries: list[Entry], max_in_flight: int) -> list[Any]:
    left = [_UNKNOWN if entry.seconds_left is None else entry.seconds_left for entry in entries]
    arrays = {
        "job_id": np.array([entry.id.encode() for entry in entries], np.object_),
        "stage": np.array([entry.stage.value.encode() for entry in entries], np.object_),
        "step": np.array([entry.step for entry in entries], np.int32),
        "steps": np.array([entry.steps for entry in entries], np.int32),
        "seconds": np.array([entry.seconds for entry in entries], np.float64),
        "seconds_left": np.array(left, np.float64),
        "max_in_flight": np.array([max_in_flight], np.int32),
    }
    return [pb_utils.Tensor(name, array[None]) for name, array in arrays.items()]


def _refusal(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
