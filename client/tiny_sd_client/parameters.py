"""The documented parameters of a generation: names, types, ranges, defaults.

Every side (tokenizer stage, clients, gateway, documentation) takes them from here. The ranges are those of Segmind's
documented Tiny-SD API; ``image_format`` is ours.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from enum import Enum, StrEnum
from typing import Annotated, Any, TypedDict

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from tiny_sd_client.errors import TinySDError

MAX_PROMPT_CHARACTERS = 4000
DOCUMENTED_SIZES = (512, 768, 1024)
# Image i of a generation uses seed + i, which must fit 64 bits as well.
MAX_SAMPLES = 4
MAX_SEED = 2**63 - MAX_SAMPLES
# Drawn seeds stay below 2**32, so that they survive JSON readers that hold numbers as doubles.
DRAWN_SEEDS = 2**32


class Scheduler(StrEnum):
    """The sampling algorithm, by its documented name."""

    DDIM = "DDIM"
    DPM_MULTI = "DPM Multi"
    DPM_SINGLE = "DPM Single"
    EULER_A = "Euler a"
    EULER = "Euler"
    HEUN = "Heun"
    DPM2_A_KARRAS = "DPM2 a Karras"
    DPM2_KARRAS = "DPM2 Karras"
    LMS = "LMS"
    PNDM = "PNDM"
    DDPM = "DDPM"
    UNIPC = "UniPC"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_SDE_ANCESTRAL = "dpmpp_sde_ancestral"


class ImageFormat(StrEnum):
    """The file format of the pictures."""

    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"


# Spellings that published clients send, besides any difference of case.
_ALIASES = {
    "euler_a": Scheduler.EULER_A,
    "dmpp_2m": Scheduler.DPMPP_2M,
    "jpg": ImageFormat.JPEG,
}


def _by_name(kind: type[Enum]) -> BeforeValidator:
    """Turns a name in any case, or an alias, into the member of ``kind``; leaves all else for pydantic to refuse."""
    members = {member.value.lower(): member for member in kind}
    members.update((alias, member) for alias, member in _ALIASES.items() if isinstance(member, kind))

    def member(given: object) -> object:
        return members.get(given.lower(), given) if isinstance(given, str) and not isinstance(given, Enum) else given

    return BeforeValidator(member)


# No control characters but tab and line breaks: they cannot be written into a picture.
_CONTROL = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f"
_Text = Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARACTERS, pattern=rf"^[^{_CONTROL}]*$")]
# At least one visible character. A pattern of its own would replace the one above, so it is the same one once more.
_VisibleText = Annotated[
    str,
    StringConstraints(max_length=MAX_PROMPT_CHARACTERS, pattern=rf"^[^{_CONTROL}]*[^{_CONTROL}\s][^{_CONTROL}]*$"),
]


class Parameters(BaseModel):
    """What a caller may ask for. Build it with :func:`parse` to get errors in the caller's words."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: _VisibleText = Field(
        description="What the picture should show. (word), (word:1.3) and [word] set emphasis."
    )
    negative_prompt: _Text = Field(default="", description="What the picture should not show.")
    scheduler: Annotated[Scheduler, _by_name(Scheduler)] = Field(
        default=Scheduler.UNIPC, description="Sampling algorithm."
    )
    num_inference_steps: int = Field(default=20, ge=20, le=100, description="Denoising steps.")
    guidance_scale: float = Field(
        default=7.5,
        ge=0.1,
        le=25.0,
        allow_inf_nan=False,
        description="How closely the picture follows the prompt; at 1 or below the negative prompt has no effect.",
    )
    samples: int = Field(default=1, ge=1, le=MAX_SAMPLES, description="Pictures to make; picture i uses seed + i.")
    seed: int = Field(default=-1, ge=-1, le=MAX_SEED, description="Seed of the first picture; -1 draws one.")
    img_width: int = Field(
        default=512, description="Width in pixels.", json_schema_extra={"enum": list(DOCUMENTED_SIZES)}
    )
    img_height: int = Field(
        default=512, description="Height in pixels.", json_schema_extra={"enum": list(DOCUMENTED_SIZES)}
    )
    base64: bool = Field(default=True, description="Pictures as base64 text (true) or raw bytes (false).")
    image_format: Annotated[ImageFormat, _by_name(ImageFormat)] = Field(
        default=ImageFormat.JPEG, description="File format of the pictures."
    )

    def resolved(self) -> Parameters:
        """The same parameters with a seed drawn where none was given."""
        return self if self.seed >= 0 else self.model_copy(update={"seed": secrets.randbelow(DRAWN_SEEDS)})

    def picture(self) -> dict[str, Any]:
        """What determines the pictures, as JSON values; this is what they carry inside."""
        return self.model_dump(mode="json", exclude={"base64"})


class Options(TypedDict, total=False):
    """The documented parameters that may be left out, as keyword arguments of the clients."""

    negative_prompt: str
    scheduler: Scheduler | str
    num_inference_steps: int
    guidance_scale: float
    samples: int
    seed: int
    img_width: int
    img_height: int
    base64: bool
    image_format: ImageFormat | str


class InvalidParameter(TinySDError, ValueError):
    """A value outside what is allowed.

    ``parameter`` is its name; the message reads ``<parameter>: got <value>; allowed: <what is allowed>``, and
    ``allowed`` is its last part, or None where the message has none.
    """

    def __init__(self, parameter: str, problem: str) -> None:
        super().__init__(parameter, problem)
        self.parameter = parameter
        _, found, allowed = problem.rpartition("; allowed: ")
        self.allowed = allowed if found else None

    def __str__(self) -> str:
        return ": ".join(self.args)


def parse(values: Mapping[str, object], sizes: Iterable[int] | None = DOCUMENTED_SIZES) -> Parameters:
    """Check ``values`` and fill in the defaults.

    ``sizes`` are the widths and heights in pixels that this server allows; None leaves that question to the server.
    Raises :class:`InvalidParameter` for the first value that is missing, mistyped, out of range or unknown.
    """
    sizes = None if sizes is None else sorted(sizes)
    possible = range(1, 2**31) if sizes is None else sizes  # what fits the tensor, an INT32, at least
    try:
        parameters = Parameters.model_validate(dict(values))
    except ValidationError as error:
        raise _in_callers_words(error.errors(include_url=False)[0], sizes) from None
    for name in ("img_width", "img_height"):
        given = getattr(parameters, name)
        if given not in possible:
            raise InvalidParameter(name, f"got {_shown(given)}; allowed: {allowed_values(name, sizes)}")
    return parameters


def allowed_values(parameter: str, sizes: Iterable[int] | None = DOCUMENTED_SIZES) -> str:
    """What ``parameter`` may be, in words, from its definition; ``sizes`` as for :func:`parse`."""
    field = Parameters.model_fields[parameter]
    schema = Parameters.model_json_schema()["properties"][parameter]
    if parameter in ("scheduler", "image_format"):
        kind = Scheduler if parameter == "scheduler" else ImageFormat
        return ", ".join(member.value for member in kind)
    if "enum" in schema:
        usual = ", ".join(map(str, DOCUMENTED_SIZES if sizes is None else sizes))
        return f"an integer that the server offers, usually {usual}" if sizes is None else usual
    if schema["type"] == "string":
        least = "text with a visible character, of at most" if field.is_required() else "text of at most"
        return f"{least} {MAX_PROMPT_CHARACTERS} characters, without control characters"
    if schema["type"] == "boolean":
        return "true or false"
    noun = "an integer" if schema["type"] == "integer" else "a number"
    return f"{noun} from {schema['minimum']} to {schema['maximum']}"


def _in_callers_words(error: ErrorDetails, sizes: Iterable[int] | None) -> InvalidParameter:
    # A name that UTF-8 cannot hold is where pydantic says nothing of the place.
    name = str(error["loc"][0]) if error["loc"] else ascii(error["input"])
    if name not in Parameters.model_fields:
        return InvalidParameter(name[:64], f"unknown parameter; allowed: {', '.join(Parameters.model_fields)}")
    allowed = allowed_values(name, sizes)
    if error["type"] == "missing":
        return InvalidParameter(name, f"is required; allowed: {allowed}")
    return InvalidParameter(name, f"got {_shown(error['input'])}; allowed: {allowed}")


def _shown(value: object) -> str:
    """A value as an error message shows it: short, and never a whole prompt."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 else f"text of {len(value)} characters"
    if isinstance(value, int) and abs(value) >= 10**40:
        return "an integer of more than 40 digits"
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    return f"a value of type {type(value).__name__}"
