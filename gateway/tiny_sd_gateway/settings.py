"""What the operator sets through the environment: ``TINY_SD_GATEWAY_`` and the name of a field in capitals."""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tiny_sd_client.parameters import DOCUMENTED_SIZES
from tiny_sd_gateway.database import engine_url
from tiny_sd_gateway.faults import SettingError

PREFIX = "TINY_SD_GATEWAY_"


def _data_folder() -> Path:
    """Where the XDG Base Directory Specification has programs keep what they must not lose."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "tiny-sd-gateway"


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


_CommaSeparated = (NoDecode, BeforeValidator(_split))
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Origin = Annotated[str, StringConstraints(pattern=r"^(\*|https?://[^/\s]+)$")]
_Slug = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,100}$")]


class Settings(BaseSettings):
    """Settings of one gateway process. Replicas on one database should have the same ones, but for host and port."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    triton_url: str = "grpc://localhost:8001"
    """Triton Inference Server, as tiny_sd_client takes it: grpc:// or grpcs://, http:// or https://."""
    database_url: str = Field(
        default_factory=lambda: f"sqlite:///{_data_folder() / 'gateway.db'}", repr=False, validate_default=True
    )
    """sqlite:///FILE (one gateway), or postgresql://USER:PASSWORD@HOST/DATABASE (several). Default: gateway.db in the
    user's data folder, ~/.local/share/tiny-sd-gateway."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port to listen on; 0 for any that is free."""
    public_url: Annotated[str, StringConstraints(pattern=r"^https?://\S+$")] | None = None
    """What callers reach the gateway by, where URLs of answers cannot take it from the request: behind a proxy."""

    slugs: Annotated[tuple[_Slug, ...], *_CommaSeparated] = Field(default=("tinysd1.5-txt2img",), min_length=1)
    """Names of the model in URLs, separated by commas; the first is the one that lists show."""
    sizes: Annotated[tuple[Annotated[int, Field(ge=8, le=8192)], ...], *_CommaSeparated] = Field(
        default=DOCUMENTED_SIZES, min_length=1
    )
    """Widths and heights in pixels that callers may ask for; the same as Triton's TINY_SD_SIZES."""
    credits_per_picture: Decimal = Field(default=Decimal(1), ge=0, le=1_000_000, decimal_places=12)
    """Price of a picture of 512 by 512 pixels and 20 steps, in credits; others cost in proportion."""
    dev_key_credits: Decimal = Field(default=Decimal(1000), ge=0, le=1_000_000_000, decimal_places=3)
    """Credits of the key that is made and printed when there are no keys yet; 0: none is made."""
    requests_per_minute: int = Field(default=60, ge=1, le=1_000_000)
    """Rate limit of keys without one of their own."""

    workers: int = Field(default=4, ge=0, le=1000)
    """Queued generations that this process works on at a time; 0 leaves the queue to others."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """Times that a queued generation is tried before it is given up and refunded."""
    lease_s: _Seconds = 30.0
    """Seconds after which a generation whose process shows no sign of life is taken over or refunded."""
    sweep_s: _Seconds = 5.0
    """Seconds between looks for such generations, and for expired results."""
    results_ttl_s: _Seconds = 86_400.0
    """Seconds that results can be fetched and idempotency keys hold, after the generation ended."""
    timeout_s: _Seconds = 300.0
    """Seconds that a caller who waits for pictures gets, in all."""
    drain_s: _Seconds = 30.0
    """Seconds that running generations get when the gateway stops."""

    body_limit_bytes: int = Field(default=8 * 2**20, ge=1024)
    """Longest request body; a picture whose parameters are asked for must fit."""
    cors_origins: Annotated[tuple[_Origin, ...], *_CommaSeparated] = ()
    """Origins whose pages may call the gateway from a browser, separated by commas; * for all."""
    log_format: Literal["console", "json"] = "console"
    """For people or for machines."""
    log_prompts: bool = False
    """Whether prompts may appear in logs and traces."""

    @field_validator("database_url")
    @classmethod
    def _usable_database(cls, url: str) -> str:
        engine_url(url)
        return url

    @field_validator("public_url")
    @classmethod
    def _without_slash(cls, url: str | None) -> str | None:
        return url.rstrip("/") if url else url

    @classmethod
    def from_environment(cls, **overrides: Any) -> Self:
        """Read the environment; ``overrides`` go before it.

        Raises :class:`SettingError` naming the variable and what is allowed.
        """
        try:
            return cls(**overrides)
        except ValidationError as error:
            raise SettingError(_in_operators_words(error)) from None


def _in_operators_words(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    problem = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    # A database's URL may hold a password.
    shown = "" if name == "database_url" else f"got {given!r}; "
    if name == "port" and isinstance(given, str) and given.startswith("tcp://"):
        problem = "Kubernetes sets this for a Service of the same name: set enableServiceLinks: false in the pod"
    return f"{PREFIX}{name.upper()}: {shown}{problem[:1].lower()}{problem[1:]}"
