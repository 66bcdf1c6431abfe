"""What the operator sets through the environment."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from tiny_sd_engine.errors import EngineError
from tiny_sd_engine.settings import PRECISIONS, SettingError, Settings

OPTIONAL = [
    "TINY_SD_PRECISION",
    "TINY_SD_SIZES",
    "TINY_SD_QUANTUM_MS",
    "TINY_SD_MAX_ROWS",
    "TINY_SD_EVICT_AFTER_S",
    "TINY_SD_TEXT_CACHE_MB",
    "TINY_SD_THREADS",
    "TINY_SD_MAX_IN_FLIGHT",
    "TINY_SD_JOBS_DIR",
]
DEFAULTS = Settings(
    checkpoint=Path("/models/tiny"),
    precision="auto",
    sizes=(512, 768, 1024),
    quantum_ms=500.0,
    max_rows=None,
    evict_after_s=30.0,
    text_cache_mb=256,
    threads=None,
    max_in_flight=32,
    jobs_dir=Path(f"/dev/shm/tiny-sd-jobs-{os.getuid()}"),
)


def read(**environment: str) -> Settings:
    return Settings.from_environment({"TINY_SD_CHECKPOINT": "/models/tiny", **environment})


def complaint(**environment: str) -> str:
    """What is said about the last of the variables."""
    with pytest.raises(SettingError) as caught:
        read(**environment)
    message = str(caught.value)
    name = list(environment)[-1]
    assert message.startswith(f"{name}: ")
    return message.removeprefix(f"{name}: ")


def test_a_checkpoint_is_all_that_must_be_set() -> None:
    assert read() == DEFAULTS


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_empty_variable_is_one_that_is_not_set(name: str) -> None:
    assert read(**{name: ""}) == DEFAULTS


@pytest.mark.parametrize("environment", [{}, {"TINY_SD_CHECKPOINT": ""}])
def test_a_checkpoint_that_is_not_set_is_named(environment: dict[str, str]) -> None:
    with pytest.raises(SettingError, match=r"^TINY_SD_CHECKPOINT: not set; "):
        Settings.from_environment(environment)


def test_every_variable_is_read() -> None:
    settings = read(
        TINY_SD_PRECISION="bf16",
        TINY_SD_SIZES="768, 256,512",
        TINY_SD_QUANTUM_MS="2.5",
        TINY_SD_MAX_ROWS="8",
        TINY_SD_EVICT_AFTER_S="1",
        TINY_SD_TEXT_CACHE_MB="16",
        TINY_SD_THREADS="1",
        TINY_SD_MAX_IN_FLIGHT="5",
        TINY_SD_JOBS_DIR="/run/jobs",
        TINY_SD_SOMETHING_ELSE="ignored",
    )
    assert settings == Settings(Path("/models/tiny"), "bf16", (256, 512, 768), 2.5, 8, 1.0, 16, 1, 5, Path("/run/jobs"))


def test_the_process_environment_is_read_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_SD_CHECKPOINT", "/somewhere")
    monkeypatch.setenv("TINY_SD_MAX_ROWS", "6")
    settings = Settings.from_environment()
    assert (settings.checkpoint, settings.max_rows) == (Path("/somewhere"), 6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_can_be_asked_for(precision: str) -> None:
    assert read(TINY_SD_PRECISION=precision).precision == precision


@pytest.mark.parametrize("value", ["fp8", "FP16", "float16", " "])
def test_an_unknown_precision_is_refused_with_all_that_are_known(value: str) -> None:
    assert complaint(TINY_SD_PRECISION=value) == f"got {value!r}; allowed: auto, fp32, bf16, fp16"


@pytest.mark.parametrize(
    "name", ["TINY_SD_MAX_ROWS", "TINY_SD_TEXT_CACHE_MB", "TINY_SD_THREADS", "TINY_SD_MAX_IN_FLIGHT"]
)
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "two", "1e3", " 4", "²", "٣"])
def test_a_count_is_a_whole_number_of_at_least_one(name: str, value: str) -> None:
    assert complaint(**{name: value}) == f"got {value!r}; allowed: a whole number of at least 1"


@pytest.mark.parametrize("name", ["TINY_SD_QUANTUM_MS", "TINY_SD_EVICT_AFTER_S"])
@pytest.mark.parametrize("value", ["0", "-1", "0.99", "ten", "nan", "inf", "-inf", "1,5", "100ms"])
def test_a_time_is_a_finite_number_of_at_least_one(name: str, value: str) -> None:
    assert complaint(**{name: value}) == f"got {value!r}; allowed: a number of at least 1"


@pytest.mark.parametrize("value", ["512,", "0", "512,-256", "512;768", "512x512", "512.0", ",", "large"])
def test_sizes_are_numbers_of_pixels(value: str) -> None:
    assert complaint(TINY_SD_SIZES=value) == (f"got {value!r}; allowed: pixel counts separated by commas, like 512,768")


def test_the_default_size_must_be_allowed() -> None:
    assert "it must hold 512" in complaint(TINY_SD_SIZES="768,1024")


def test_sizes_come_sorted_and_once() -> None:
    assert read(TINY_SD_SIZES="1024,512, 512").sizes == (512, 1024)


def test_a_mistake_in_the_settings_is_an_error_of_the_engine_and_settings_do_not_change() -> None:
    assert issubclass(SettingError, EngineError)
    with pytest.raises(FrozenInstanceError):
        read().precision = "fp32"  # type: ignore[misc]
