"""The gateway's settings, from the environment."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from tiny_sd_gateway.faults import SettingError
from tiny_sd_gateway.settings import PREFIX, Settings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)


def test_every_setting_has_a_default_and_a_description() -> None:
    Settings.from_environment()
    assert not [name for name, field in Settings.model_fields.items() if not field.description]


def test_the_database_is_in_the_users_data_folder_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert Settings.from_environment().database_url == "sqlite:////data/tiny-sd-gateway/gateway.db"
    monkeypatch.delenv("XDG_DATA_HOME")
    home = Path.home() / ".local" / "share"
    assert Settings.from_environment().database_url == f"sqlite:///{home}/tiny-sd-gateway/gateway.db"


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_SD_GATEWAY_SLUGS", "tiny, small ,")
    monkeypatch.setenv("TINY_SD_GATEWAY_SIZES", "128,256")
    monkeypatch.setenv("TINY_SD_GATEWAY_CORS_ORIGINS", "https://a.example,http://localhost:3000")
    settings = Settings.from_environment()
    assert settings.slugs == ("tiny", "small")
    assert settings.sizes == (128, 256)
    assert settings.cors_origins == ("https://a.example", "http://localhost:3000")


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_SD_GATEWAY_PORT", "")
    assert Settings.from_environment().port == 8080


def test_arguments_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_SD_GATEWAY_PORT", "1")
    assert Settings.from_environment(port="2").port == 2


def test_the_price_is_read_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_SD_GATEWAY_CREDITS_PER_PICTURE", "0.1")
    assert Settings.from_environment().credits_per_picture == Decimal("0.1")


def test_a_public_url_loses_its_last_slash() -> None:
    assert Settings.from_environment(public_url="https://a.example/api/").public_url == "https://a.example/api"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PORT", "http", "got 'http'; input should be a valid integer"),
        ("PORT", "70000", "got '70000'; input should be less than or equal to 65535"),
        ("PORT", "tcp://10.0.0.7:8080", "enableServiceLinks: false"),
        ("SIZES", "512,big", "got 'big'; input should be a valid integer"),
        ("SIZES", ",", "at least 1 item"),
        ("SLUGS", "a/b", "should match pattern"),
        ("CORS_ORIGINS", "a.example", "should match pattern"),
        ("PUBLIC_URL", "a.example", "should match pattern"),
        ("CREDITS_PER_PICTURE", "-1", "greater than or equal to 0"),
        ("CREDITS_PER_PICTURE", "NaN", "finite"),
        ("DEV_KEY_CREDITS", "0.0001", "no more than 3 decimal places"),
        ("LEASE_S", "0", "greater than 0"),
        ("LEASE_S", "inf", "finite"),
        ("LOG_FORMAT", "xml", "'console' or 'json'"),
        ("DATABASE_URL", "mysql://localhost/x", "got a URL of mysql; allowed: sqlite:///FILE, or postgresql://"),
        ("DATABASE_URL", "sqlite://", "names no file"),
        ("DATABASE_URL", "sqlite:///x?mode=ro", "has options"),
        ("DATABASE_URL", "gateway.db", "is no database URL"),
    ],
)
def test_a_bad_value_is_refused_by_the_variables_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(SettingError) as refusal:
        Settings.from_environment()
    assert str(refusal.value).startswith(f"{PREFIX}{name}: ")
    assert said in str(refusal.value)


def test_no_message_shows_a_databases_password() -> None:
    with pytest.raises(SettingError) as refusal:
        Settings.from_environment(database_url="mysql://me:s3cret@localhost/x")
    assert "s3cret" not in str(refusal.value)
    assert "s3cret" not in repr(Settings.from_environment(database_url="postgresql://me:s3cret@localhost/x"))
