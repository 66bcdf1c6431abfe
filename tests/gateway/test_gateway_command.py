"""The command: keys on real databases, and how the gateway starts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny_sd_gateway import keys, server
from tiny_sd_gateway.command import main
from tiny_sd_gateway.database import Database
from tiny_sd_gateway.settings import Settings

Command = Callable[..., str]
SECRET = r"tsd_[A-Za-z0-9_-]{43}"


@pytest.fixture
def command(database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line that must succeed, and returns its standard output."""
    monkeypatch.setenv("TINY_SD_GATEWAY_DATABASE_URL", database_url)

    def run(*arguments: str) -> str:
        assert main(arguments) == 0
        return capsys.readouterr().out

    return run


def found(database_url: str, secret: str) -> keys.Key:
    async def find() -> keys.Key:
        async with Database(database_url) as database:
            return await keys.find(database, secret)

    return asyncio.run(find())


def test_a_key_is_printed_alone_for_scripts_to_take(command: Command, database_url: str) -> None:
    out = command("keys", "create", "me", "--credits", "12.5", "--requests-per-minute", "7")
    assert re.fullmatch(SECRET + "\n", out)
    key = found(database_url, out.strip())
    assert (key.name, key.requests_per_minute) == ("me", 7)


def test_keys_are_listed_credited_and_revoked(command: Command) -> None:
    first = command("keys", "create", "first", "--credits", "10").strip()
    second = command("keys", "create", "the second").strip()
    assert command("keys", "credit", first[:12], "2.5") == "Key 1 (first) has 12.5 credits.\n"
    assert command("keys", "credit", "1", "-12") == "Key 1 (first) has 0.5 credits.\n"
    assert command("keys", "revoke", second) == "Key 2 (the second) is revoked.\n"

    listed = [json.loads(line) for line in command("keys", "list", "--json").splitlines()]
    assert [(key["id"], key["begins"], key["name"], key["credits"]) for key in listed] == [
        (1, first[:12], "first", "0.5"),
        (2, second[:12], "the second", "0"),
    ]
    assert listed[0]["revoked"] is None
    assert listed[1]["revoked"] >= listed[1]["made"]

    table = command("keys", "list")
    assert first not in table
    assert table.splitlines()[0].split() == ["ID", "BEGINS", "CREDITS", "PER", "MINUTE", "MADE", "REVOKED", "NAME"]
    assert re.fullmatch(rf"1 +{re.escape(first[:12])} +0\.5 +usual +[0-9-]{{10}} +first", table.splitlines()[1])
    assert re.fullmatch(rf"2 .+ {listed[1]['revoked'][:10]} +the second", table.splitlines()[2])


def test_an_empty_database_is_made_ready_first(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TINY_SD_GATEWAY_DATABASE_URL", empty_url)
    assert main(["keys", "list", "--json"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (["keys", "credit", "7", "1"], 1, "no API key has the id or begins with '7'; see tiny-sd-gateway keys list"),
        (["keys", "credit", "1", "-11"], 1, "not enough credits: 11 needed, 10 left"),
        (["keys", "create", ""], 2, "name: got 0 characters; allowed: 1 to 100"),
        (["keys", "create", "x", "--requests-per-minute", "0"], 2, "requests_per_minute: got 0; allowed: 1 or more"),
        (["keys", "create", "x", "--credits", "-1"], 2, "credits: got a negative number; allowed: 0 or more"),
        (["run", "--port", "http"], 2, "TINY_SD_GATEWAY_PORT: got 'http'; input should be a valid integer"),
    ],
)
def test_a_refusal_is_one_line(
    command: Command, capsys: pytest.CaptureFixture[str], line: list[str], code: int, said: str
) -> None:
    command("keys", "create", "me", "--credits", "10")
    capsys.readouterr()
    assert main(line) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"tiny-sd-gateway: {said}")
    assert told.err.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    [[], ["keys"], ["keys", "credit", "1"], ["keys", "credit", "1", "1.0001"], ["keys", "credit", "1", "many"]],
)
def test_wrong_usage_is_told(capsys: pytest.CaptureFixture[str], line: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(line)
    assert end.value.code == 2
    assert "usage: tiny-sd-gateway" in capsys.readouterr().err


@pytest.mark.parametrize("line", [["run"], ["keys", "list"]])
def test_a_database_that_cannot_be_used_is_told_with_the_setting_that_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: list[str]
) -> None:
    monkeypatch.setenv("TINY_SD_GATEWAY_DATABASE_URL", "postgresql://me:s3cret@127.0.0.1:9/gateway")
    assert main(line) == 1
    told = capsys.readouterr().err
    assert told.startswith("tiny-sd-gateway: postgresql://me:***@127.0.0.1:9/gateway: ")
    assert told.endswith("(TINY_SD_GATEWAY_DATABASE_URL names it)\n")
    assert told.count("\n") == 1


def test_the_first_start_prints_a_key_and_the_next_one_does_not(
    command: Command, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Settings] = []

    def run(settings: Settings, ready: Callable[[str], None]) -> None:
        served.append(settings)
        ready("http://localhost:1234/")

    monkeypatch.setattr(server, "run", run)
    monkeypatch.setenv("TINY_SD_GATEWAY_DEV_KEY_CREDITS", "12.5")
    out = command("run", "--host", "0.0.0.0", "--port", "1234")
    secret = re.search(SECRET, out)
    assert secret
    assert "12.5 credits" in out
    assert f"\nPlayground: http://localhost:1234/#key={secret[0]}\n" in out
    assert found(database_url, secret[0]).id == 1
    assert command("run") == "Playground: http://localhost:1234/\n"
    assert [(settings.host, settings.port) for settings in served] == [("0.0.0.0", 1234), ("127.0.0.1", 8080)]


def test_no_key_is_made_where_none_is_wanted(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "run", lambda settings, ready: None)
    monkeypatch.setenv("TINY_SD_GATEWAY_DEV_KEY_CREDITS", "0")
    assert command("run") == ""
    assert command("keys", "list", "--json") == ""


def test_the_installed_command_keeps_its_data_in_the_users_folder(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("tiny-sd-gateway")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TINY_SD_GATEWAY_")}
    done = subprocess.run(
        [program, "keys", "create", "me"],
        env={**environment, "XDG_DATA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch(SECRET + "\n", done.stdout)
    assert done.stderr == "Key 1 (me); it is shown only now:\n"
    assert (tmp_path / "tiny-sd-gateway" / "gateway.db").exists()
