"""Runs the ensemble for a caller who wants to see how it goes, and stops it when that caller is gone."""

from __future__ import annotations

import asyncio
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import triton_python_backend_utils as pb_utils
from progress import Progress, told

from tiny_sd_client.parameters import Parameters
from tiny_sd_engine.errors import DuplicateId, EngineError, UnknownJob
from tiny_sd_engine.jobs import Board, faults_logged, job_id
from tiny_sd_engine.settings import Settings

_LOOK_S = 0.05
_SPARE_THREADS = 16
_PICTURES = ("image", "seeds", "parameters")


class TritonPythonModel:
    """Triton's interface to one generation's progress."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the job board."""
        settings = Settings.from_environment()
        self._board = Board.of_this_server(settings.jobs_dir)
        # Triton waits for each call of the ensemble in a thread of the event loop's; by default there are few. One for
        # each generation in flight, and some to hear refusals.
        self._threads = ThreadPoolExecutor(settings.max_in_flight + _SPARE_THREADS)

    async def execute(self, requests: list[Any]) -> None:
        """Serve the requests side by side, and beside those of other calls."""
        asyncio.get_running_loop().set_default_executor(self._threads)
        await asyncio.gather(*(self._serve(request) for request in requests))

    async def _serve(self, request: Any) -> None:
        sender = request.get_response_sender()
        try:
            last = await self._generate(request, sender)
        except EngineError as error:
            last = _refusal(str(error))
        except Exception as error:  # nothing raises out of execute
            pb_utils.Logger.log_error(f"tiny_sd_stream: {error!r}")
            last = _refusal("the stream failed")
        _sent(sender, last, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def _generate(self, request: Any, sender: Any) -> Any:
        """Run the ensemble, telling the caller how far it is. Returns the last response."""
        id = job_id(request.request_id())
        with faults_logged(), suppress(UnknownJob):
            self._board.find(id)
            raise DuplicateId(id)  # before this stream could take the other job for its own
        start = time.monotonic()
        running = asyncio.ensure_future(_ensemble(request, id).async_exec())
        progress = Progress(self._board, id, request)
        lost = False
        while not (await asyncio.wait({running}, timeout=_LOOK_S))[0]:
            with faults_logged(), suppress(UnknownJob):  # it may not have got to the board yet, or just left it
                if lost or sender.is_cancelled():
                    self._board.cancel(id)
                elif event := progress.event():
                    lost = not _sent(sender, pb_utils.InferenceResponse(event))
        response = running.result()
        if response.has_error():
            return _refusal(response.error().message())
        pictures = [pb_utils.get_output_tensor_by_name(response, name) for name in _PICTURES]
        steps = json.loads(pictures[-1].as_numpy().flat[0])["num_inference_steps"]
        done = told(id, "done", steps, steps, seconds=time.monotonic() - start, left=0.0)
        return pb_utils.InferenceResponse([*done, *pictures])


def _ensemble(request: Any, id: str) -> Any:
    """The same request to ``tiny_sd``."""
    inputs = [pb_utils.get_input_tensor_by_name(request, name) for name in Parameters.model_fields]
    extras = json.loads(request.parameters() or "{}")
    every = pb_utils.get_input_tensor_by_name(request, "preview_every")
    if every is not None:
        extras["preview_every"] = int(every.as_numpy().flat[0])
    return pb_utils.InferenceRequest(
        model_name="tiny_sd",
        request_id=id,
        correlation_id=request.correlation_id(),
        inputs=[tensor for tensor in inputs if tensor is not None],
        requested_output_names=list(_PICTURES),
        timeout=request.timeout(),
        parameters={name: value if isinstance(value, int) else str(value) for name, value in extras.items()},
    )


def _sent(sender: Any, response: Any, flags: int = 0) -> bool:
    """Whether a response could be handed to Triton: the memory that it passes through may be full."""
    try:
        sender.send(response, flags=flags)
    except Exception as error:  # nothing raises out of execute
        pb_utils.Logger.log_error(f"tiny_sd_stream: {error!r}")
        return False
    return True


def _refusal(message: str) -> Any:
    """An error response. Through a model's own call Triton hands on the message of an error, not its code."""
    kind = pb_utils.TritonError
    message = re.sub(r"^(in ensemble '\w+', )+", "", message)
    word = message.partition(": ")[0]
    codes = {"busy": kind.UNAVAILABLE, "overdue": kind.UNAVAILABLE, "cancelled": kind.CANCELLED}
    code = codes.get(word, kind.INVALID_ARG if re.fullmatch(r"\w+", word) else kind.INTERNAL)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
