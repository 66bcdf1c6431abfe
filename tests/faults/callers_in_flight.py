"""Callers whose generations are under way when something breaks, and what each of them sees."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from types import TracebackType
from typing import Self

from supervised import PATIENCE_S, Supervised

from tiny_sd_client import Client, Progress, TinySDError

PICTURE = "picture"
WRONG = "another picture"


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


class Repeaters:
    """Callers who ask for a picture of their own again and again, as long as the ``with`` block lasts.

    ``pictures``: each caller's seed, and the file that is made of it.
    """

    def __init__(self, server: Supervised, pictures: Mapping[int, bytes]) -> None:
        self._server = server
        self._pictures = pictures
        self._over = threading.Event()
        self.saw: Counter[str] = Counter()
        """How often they saw what, once the block is left: their picture, another one, or the client's error."""

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(len(self._pictures))
        self._calls = [self._threads.submit(self._call, seed) for seed in self._pictures]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._threads.shutdown()
        for call in self._calls:
            self.saw += call.result()

    def _call(self, seed: int) -> Counter[str]:
        saw: Counter[str] = Counter()
        while not self._over.wait(0.05):
            try:
                made = self._server.picture(seed=seed)
            except TinySDError as error:
                saw[type(error).__name__] += 1
            else:
                saw[PICTURE if made == self._pictures[seed] else WRONG] += 1
        return saw


def in_words(saw: Counter[str]) -> str:
    """For the table: ``3 Unavailable, 1 picture``."""
    return ", ".join(f"{count} {what}" for what, count in saw.most_common())
