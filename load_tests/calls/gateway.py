"""The REST gateway: v1, whose answer is the picture, and v2, the queue."""

from __future__ import annotations

from typing import Any

import gevent

from load_tests.calls.answers import Failed, Mark, Refused, check_base64, check_files
from load_tests.calls.web import Web
from tiny_sd_client.parameters import Parameters

_SLUG = "tinysd1.5-txt2img"
_POLL_S = 0.25


class Gateway:
    """The gateway, for all callers of a process, who share a key."""

    def __init__(self, url: str, key: str) -> None:
        self._web = Web(url, {"x-api-key": key})

    def wait(self, parameters: Parameters, mark: Mark) -> int:
        """v1: one request, answered with the pictures."""
        image = self._submit("v1", parameters)["image"]
        return check_base64(image if isinstance(image, list) else [image], parameters)

    def queue(self, parameters: Parameters, mark: Mark) -> int:
        """v2: submit, look until it is done, fetch the pictures."""
        submitted = self._submit("v2", parameters)
        mark("accepted")
        while (looked := _expect(*self._web.get(submitted["status_url"])))["status"] != "COMPLETED":
            if looked["status"] not in ("QUEUED", "PROCESSING"):
                raise Failed(f"v2: {looked['status']}")
            gevent.sleep(_POLL_S)
        result = _expect(*self._web.get(submitted["response_url"]))
        return check_files([self._web.fetch(image["url"]) for image in result["images"]], parameters)

    def close(self) -> None:
        """Close the connections."""
        self._web.close()

    def _submit(self, version: str, parameters: Parameters) -> dict[str, Any]:
        return _expect(*self._web.post(f"/{version}/{_SLUG}", parameters.picture()))


def _expect(status: int, answer: Any) -> dict[str, Any]:
    if status == 429:
        raise Refused
    if status != 200 or not isinstance(answer, dict):
        reason = answer.get("error", "") if isinstance(answer, dict) else ""
        raise Failed(f"HTTP {status}: {reason}"[:200])
    return answer
