"""Callers whose generations are under way when something breaks, and what each of them sees."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from types import TracebackType
from typing import Self

from supervised import PATIENCE_S

from tiny_sd_client import Client, Progress, TinySDError

PICTURE = "picture"


class Callers:
    """So many callers, each of whom has seen a step by the time the ``with`` block begins."""

    def __init__(self, url: str, number: int = 4) -> None:
        self._url = url
        self._number = number
        self._begun = threading.Semaphore(0)

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(self._number)
        self._calls: list[Future[str]] = [self._threads.submit(self._call, seed) for seed in range(self._number)]
        for _ in self._calls:
            assert self._begun.acquire(timeout=PATIENCE_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    def saw(self) -> Counter[str]:
        """How many saw what: a picture, or the name of the client's error. Anything else is raised."""
        return Counter(call.result(PATIENCE_S) for call in self._calls)

    def _call(self, seed: int) -> str:
        begun = False
        try:
            with (
                Client(self._url, patience=0) as client,
                closing(client.stream("leaves", seed=seed, num_inference_steps=100)) as events,
            ):
                for event in events:
                    if isinstance(event, Progress) and event.step and not begun:
                        begun = True
                        self._begun.release()
        except TinySDError as error:
            return type(error).__name__
        return PICTURE


def in_words(saw: Counter[str]) -> str:
    """For the table: ``3 Unavailable, 1 picture``."""
    return ", ".join(f"{count} {what}" for what, count in saw.most_common())
