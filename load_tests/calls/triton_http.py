"""Triton by HTTP: ``generate`` with flat JSON, and ``infer`` with tensors in JSON."""

from __future__ import annotations

from typing import Any

from load_tests.calls.answers import Failed, Mark, check_base64, error
from load_tests.calls.tensors import tensors
from load_tests.calls.web import Web
from tiny_sd_client.parameters import Parameters


class TritonHttp:
    """Triton's HTTP endpoint, for all callers of a process."""

    def __init__(self, url: str) -> None:
        self._web = Web(url)

    def generate(self, parameters: Parameters, mark: Mark) -> int:
        """Triton's generate extension."""
        answer = self._ask("/v2/models/tiny_sd/generate", parameters.picture())
        image = answer.get("image")
        return check_base64(image if isinstance(image, list) else [image or ""], parameters)

    def infer(self, parameters: Parameters, mark: Mark) -> int:
        """The KServe protocol."""
        inputs = [
            {"name": name, "datatype": datatype, "shape": [1, 1], "data": [value]}
            for name, datatype, value in tensors(parameters, base64=True)
        ]
        answer = self._ask("/v2/models/tiny_sd/infer", {"inputs": inputs, "outputs": [{"name": "image"}]})
        outputs = {output["name"]: output["data"] for output in answer.get("outputs", [])}
        return check_base64(outputs.get("image", []), parameters)

    def close(self) -> None:
        """Close the connections."""
        self._web.close()

    def _ask(self, path: str, body: object) -> dict[str, Any]:
        status, answer = self._web.post(path, body)
        if not isinstance(answer, dict):
            raise Failed(f"HTTP {status} without a JSON object")
        if status != 200:
            raise error(str(answer.get("error", f"HTTP {status}")))
        return answer
