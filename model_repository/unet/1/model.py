"""Third stage: the denoising loop. Requests come back to ``execute`` again and again until their picture is done."""

from __future__ import annotations

import itertools
import json
import threading
import time
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from metrics import Metrics
from progress import Progress

from tiny_sd_engine.denoiser import Denoiser
from tiny_sd_engine.device import limit_threads, select_device
from tiny_sd_engine.errors import Cancelled, InvalidInput, Overdue
from tiny_sd_engine.flight import Job, Task
from tiny_sd_engine.jobs import Board, Stage
from tiny_sd_engine.previews import Previewer
from tiny_sd_engine.settings import DEFAULT_SIZE, Settings
from tiny_sd_engine.vae import VaeDecoder


class TritonPythonModel:
    """Triton's interface to the denoiser: in flight under iterative sequences, else each batch to its end."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the checkpoint's U-Net and start watching for jobs that Triton has dropped."""
        settings = Settings.from_environment()
        limit_threads(settings.threads)
        device = select_device(args["model_instance_kind"], int(args["model_instance_device_id"]), settings.precision)
        self._in_flight = "sequence_batching" in json.loads(args["model_config"])
        self._quantum_s = settings.quantum_ms / 1000
        self._plain_keys = itertools.count()
        self._metrics = Metrics(args["model_name"], args["model_version"], args["model_instance_name"])
        self._denoiser = Denoiser(settings.checkpoint, device, settings.max_rows, self._metrics)
        self._denoiser.warm_up(DEFAULT_SIZE, DEFAULT_SIZE)
        self._board = Board.of_this_server(settings.jobs_dir)
        self._progress = Progress(self._board, self._denoiser, Previewer(VaeDecoder(settings.checkpoint, device)))
        self._stopping = threading.Event()
        self._evictor = threading.Thread(target=self._evict, args=(settings.evict_after_s,), daemon=True)
        self._evictor.start()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Take every request's job some steps on; answer those that have ended, hand the others back to Triton."""
        keys = [request.correlation_id() if self._in_flight else next(self._plain_keys) for request in requests]
        answers = [self._admit(key, request) for key, request in zip(keys, requests, strict=True)]
        if jobs := [answer for answer in answers if isinstance(answer, Job)]:
            # Triton made up this batch while the last call ran, so some requests that were part of that are not in it.
            others = self._denoiser.others(jobs) if self._in_flight else []
            self._denoise(jobs, others)
        return [self._answer(*each) for each in zip(keys, requests, answers, strict=True)]

    def finalize(self) -> None:
        """Stop the watch, and report no more."""
        self._stopping.set()
        self._evictor.join()
        self._metrics.close()

    def _denoise(self, jobs: list[Job], others: list[Job]) -> None:
        start, everyone = time.monotonic(), [*jobs, *others]
        with self._board.at_work(Stage.DENOISING, [job.task.job_id for job in self._denoiser.jobs()]):
            self._stop_cancelled(everyone)
            if self._in_flight:
                slice_s = self._denoiser.time_slice_s(self._quantum_s)
                self._denoiser.run(jobs, slice_s, lambda: self._look_up(everyone, start), others)
            else:
                self._denoiser.run_to_end(jobs)
            self._progress.tell(everyone)

    def _admit(self, key: object, request: Any) -> Any:
        """The request's job, or the error response that it gets instead."""
        if request.is_cancelled():
            return _refusal(str(Cancelled()), pb_utils.TritonError.CANCELLED)
        try:
            return self._denoiser.job(key, lambda: _task(request))
        except InvalidInput as error:
            return _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # nothing raises out of execute: it would fail the whole batch
            pb_utils.Logger.log_error(f"unet: {error!r}")
            return _refusal("the denoiser failed", pb_utils.TritonError.INTERNAL)

    def _stop_cancelled(self, jobs: list[Job]) -> None:
        stops = self._board.take_up(Stage.DENOISING, [job.task.job_id for job in jobs])
        for job in jobs:
            if job.task.job_id in stops:
                self._denoiser.stop(job, stops[job.task.job_id])

    def _look_up(self, jobs: list[Job], start: float) -> bool:
        """Between two U-Net calls: tell how far the jobs are, see which to stop. Returns whether one wants to join."""
        if self._progress.is_due():
            self._progress.tell(jobs)
            self._stop_cancelled(jobs)
        return self._board.newcomer_waits(start)

    def _answer(self, key: object, request: Any, answer: Any) -> Any:
        if isinstance(answer, Job) and not answer.ended:
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            return None
        self._denoiser.remove(key)
        job_id = _array(request, "job_id")[0].decode("utf-8", "replace")
        if isinstance(answer, Job) and answer.error is None:
            self._board.hand_on(job_id, Stage.DECODING)
        else:
            self._board.remove([job_id])
        return _result(answer) if isinstance(answer, Job) else answer

    def _evict(self, older_than_s: float) -> None:
        while not self._stopping.wait(older_than_s / 4):
            self._denoiser.evict(older_than_s)
            self._board.forget_lost()  # not the evicted by their ids, which others may have by now


def _task(request: Any) -> Task:
    return Task(
        prompt_embeds=torch.from_numpy(_array(request, "prompt_embeds")),
        negative_embeds=torch.from_numpy(_array(request, "negative_embeds")),
        scheduler=_array(request, "scheduler")[0].decode("utf-8", "replace"),
        num_inference_steps=int(_array(request, "num_inference_steps")[0]),
        guidance_scale=float(_array(request, "guidance_scale")[0]),
        seeds=_array(request, "seeds").tolist(),
        width=int(_array(request, "img_width")[0]),
        height=int(_array(request, "img_height")[0]),
        deadline=float(_array(request, "deadline")[0]),
        job_id=_array(request, "job_id")[0].decode("utf-8", "replace"),
        preview_every=int(_array(request, "preview_every")[0]),
    )


def _array(request: Any, name: str) -> np.ndarray:
    """An input of a request, whose batch size is always 1."""
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0]


def _result(job: Job) -> Any:
    if job.error is None:
        return pb_utils.InferenceResponse([pb_utils.Tensor("latents", job.latents()[None].numpy())])
    codes = {Overdue: pb_utils.TritonError.UNAVAILABLE, Cancelled: pb_utils.TritonError.CANCELLED}
    return _refusal(str(job.error), codes.get(type(job.error), pb_utils.TritonError.INTERNAL))


def _refusal(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
