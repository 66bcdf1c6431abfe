"""A request as Triton's inputs, whatever the protocol."""

from __future__ import annotations

from collections.abc import Iterator

from tiny_sd_client.parameters import Parameters

Value = str | bool | int | float
_DATATYPES: dict[type, str] = {str: "BYTES", bool: "BOOL", int: "INT32", float: "FP32"}


def tensors(
    parameters: Parameters, *, base64: bool, preview_every: int | None = None
) -> Iterator[tuple[str, str, Value]]:
    """Name, datatype and value of each input, all of shape [1, 1]. ``preview_every`` is for streams alone."""
    values: dict[str, Value] = {**parameters.picture(), "base64": base64}
    if preview_every is not None:
        values["preview_every"] = preview_every
    for name, value in values.items():
        yield name, "INT64" if name == "seed" else _DATATYPES[type(value)], value
