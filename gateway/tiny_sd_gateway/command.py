"""The command ``tiny-sd-gateway``: run the gateway, and see to its API keys."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TypeVar

from tiny_sd_gateway import keys, ledger, money
from tiny_sd_gateway.database import Database
from tiny_sd_gateway.faults import DatabaseError, GatewayError, SettingError
from tiny_sd_gateway.settings import PREFIX, Settings

T = TypeVar("T")

INTERRUPTED = 130
FIRST_KEY = "first"
EPILOG = """\
Settings come from the environment; docs/configuration.md lists them. KEY is a
key's id, or its beginning, as `keys list` shows them.

exit codes: 0 done, 1 the database cannot be used or refuses, 2 wrong usage or
setting, 130 interrupted
"""


class _UsageError(Exception):
    """A value that was typed cannot be used."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, this process's by default, and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (GatewayError, _UsageError) as error:
        advice = f" ({PREFIX}DATABASE_URL names it)" if isinstance(error, DatabaseError) else ""
        sys.stderr.write(f"tiny-sd-gateway: {error}{advice}\n")
        return 2 if isinstance(error, (SettingError, _UsageError)) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tiny-sd-gateway",
        description="The REST gateway of Tiny-SD on Triton.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="serve the API and the playground until Ctrl-C or SIGTERM")
    run.add_argument("--host", help=f"address to listen on; {PREFIX}HOST")
    run.add_argument("--port", help=f"port to listen on; {PREFIX}PORT")
    run.set_defaults(run=_serve)

    of_keys = commands.add_parser("keys", help="make, list, revoke and credit API keys")
    actions = of_keys.add_subparsers(metavar="ACTION", required=True)

    create = actions.add_parser("create", help="make a key and print it, which happens only once")
    create.add_argument("name", metavar="NAME", help="whose or what it is for")
    create.add_argument("--credits", type=_credits, default=0, metavar="CREDITS", help="to begin with; default 0")
    create.add_argument("--requests-per-minute", type=int, metavar="N", help="instead of the gateway's usual limit")
    create.set_defaults(run=_create)

    show = actions.add_parser("list", help="show all keys and what they have left")
    show.add_argument("--json", action="store_true", help="one JSON object for each key")
    show.set_defaults(run=_list)

    revoke = actions.add_parser("revoke", help="let nobody use a key any more; what it has queued still runs")
    revoke.add_argument("key", metavar="KEY")
    revoke.set_defaults(run=_revoke)

    credit = actions.add_parser("credit", help="grant a key credits, or take them back")
    credit.add_argument("key", metavar="KEY")
    credit.add_argument("credits", type=_credits, metavar="CREDITS", help="such as 100 or 0.5; negative to take back")
    credit.add_argument("--note", default="", help="why, for the ledger")
    credit.set_defaults(run=_credit)
    return parser


def _credits(text: str) -> int:
    try:
        return money.parse_credits(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _serve(options: argparse.Namespace) -> int:
    given = {name: value for name in ("host", "port") if (value := getattr(options, name)) is not None}
    settings = Settings.from_environment(**given)
    # It takes a second to load, which the other commands need not spend.
    from tiny_sd_gateway import server  # noqa: PLC0415

    first = _with_database(settings, lambda database: _first_key(database, settings))
    if first is not None:
        sys.stdout.write(
            f"There were no API keys; this one has {money.shown(_first_credits(settings))} credits. "
            f"It is shown only now:\n\n    {first.secret}\n\n"
        )
        sys.stdout.flush()

    def ready(url: str) -> None:
        sys.stdout.write(f"Playground: {url}{f'#key={first.secret}' if first else ''}\n")
        sys.stdout.flush()

    server.run(settings, ready)
    return 0


async def _first_key(database: Database, settings: Settings) -> keys.NewKey | None:
    credits = _first_credits(settings)
    return await keys.create_first(database, FIRST_KEY, credits) if credits else None


def _first_credits(settings: Settings) -> int:
    return int(settings.dev_key_credits * money.MILLI)


def _create(options: argparse.Namespace) -> int:
    async def create(database: Database) -> keys.NewKey:
        try:
            return await keys.create(database, options.name, options.credits, options.requests_per_minute)
        except ValueError as error:
            raise _UsageError(error) from None

    new = _with_database(Settings.from_environment(), create)
    sys.stderr.write(f"Key {new.key.id} ({new.key.name}); it is shown only now:\n")
    sys.stderr.flush()
    sys.stdout.write(f"{new.secret}\n")
    return 0


def _list(options: argparse.Namespace) -> int:
    accounts = _with_database(Settings.from_environment(), keys.accounts)
    if options.json:
        for account in accounts:
            sys.stdout.write(f"{json.dumps(_as_json(account))}\n")
        return 0
    table = [("ID", "BEGINS", "CREDITS", "PER MINUTE", "MADE", "REVOKED", "NAME"), *map(_as_row, accounts)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(f"{line.rstrip()}\n")
    return 0


def _revoke(options: argparse.Namespace) -> int:
    key = _with_database(Settings.from_environment(), lambda database: keys.revoke(database, options.key))
    sys.stdout.write(f"Key {key.id} ({key.name}) is revoked.\n")
    return 0


def _credit(options: argparse.Namespace) -> int:
    async def credit(database: Database) -> tuple[keys.Key, int]:
        key = await keys.look_up(database, options.key)
        return key, await ledger.credit(database, key.id, options.credits, options.note)

    key, balance = _with_database(Settings.from_environment(), credit)
    sys.stdout.write(f"Key {key.id} ({key.name}) has {money.shown(balance)} credits.\n")
    return 0


def _with_database(settings: Settings, use: Callable[[Database], Awaitable[T]]) -> T:
    """What ``use`` returns for the database, which is brought up to date first."""

    async def session() -> T:
        async with Database(settings.database_url) as database:
            await database.migrate()
            return await use(database)

    return asyncio.run(session())


def _as_row(account: keys.Account) -> tuple[str, ...]:
    key = account.key
    return (
        str(key.id),
        key.prefix,
        money.shown(account.balance),
        "usual" if key.requests_per_minute is None else str(key.requests_per_minute),
        _day(key.created_at),
        "" if key.revoked_at is None else _day(key.revoked_at),
        key.name,
    )


def _as_json(account: keys.Account) -> dict[str, object]:
    key = account.key
    return {
        "id": key.id,
        "begins": key.prefix,
        "name": key.name,
        "credits": money.shown(account.balance),
        "requests_per_minute": key.requests_per_minute,
        "made": key.created_at.isoformat(),
        "revoked": None if key.revoked_at is None else key.revoked_at.isoformat(),
    }


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"
