"""The documented parameters as options: short names for them, everything else from their definition."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from tiny_sd_client.parameters import Parameters, allowed_values

OPTIONS: dict[str, tuple[str, ...]] = {
    "samples": ("-n", "--samples"),
    "num_inference_steps": ("--steps",),
    "scheduler": ("--scheduler",),
    "guidance_scale": ("--guidance",),
    "img_width": ("--size",),
    "img_height": ("--size",),
    "seed": ("--seed",),
    "negative_prompt": ("--negative",),
    "image_format": ("--format",),
}
"""Parameter -> its option. ``prompt`` is the argument, and ``base64`` is between client and server."""

# What stands for the value in the help, and what makes it of the text; the scheduler and the format are names.
_KINDS: dict[object, tuple[str, Callable[[str], object]]] = {int: ("N", int), float: ("X", float), str: ("TEXT", str)}
_NAME = ("NAME", str)


def add_options(group: argparse._ArgumentGroup) -> None:
    """Add an option for every parameter; those that are not given stay None."""
    for name, flags in OPTIONS.items():
        if flags != ("--size",):
            metavar, kind = _KINDS.get(Parameters.model_fields[name].annotation, _NAME)
            group.add_argument(*flags, dest=name, type=kind, metavar=metavar, help=_help(name))
    group.add_argument("--size", type=_size, metavar="WxH", help=_size_help())


def given(options: argparse.Namespace) -> dict[str, object]:
    """The parameters that the options name."""
    size = {} if options.size is None else {"img_width": options.size[0], "img_height": options.size[1]}
    others = {name: getattr(options, name) for name in OPTIONS if name not in ("img_width", "img_height")}
    return {name: value for name, value in others.items() if value is not None} | size


def _help(name: str) -> str:
    field = Parameters.model_fields[name]
    return f"{field.description} Allowed: {allowed_values(name)}. Default: {field.default or 'none'}.".replace(
        "%", "%%"
    )


def _size(text: str) -> tuple[int, int]:
    """``768x512`` or ``768`` as width and height in pixels."""
    width, _, height = text.lower().partition("x")
    try:
        return int(width), int(height or width)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: WIDTHxHEIGHT or one number for both") from None


def _size_help() -> str:
    default = Parameters.model_fields["img_width"].default
    sizes = allowed_values("img_width")
    return (
        f"Width and height in pixels, or one number for both. Allowed: {sizes}, each by itself, unless the server's "
        f"operator chose others. Default: {default}x{default}."
    )
