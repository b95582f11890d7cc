"""`tidepipe keys`: who may call a secured cluster."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tidepipe.cli.options import AsJson
from tidepipe_common.errors import ConfigError
from tidepipe_common.security.api_key import KEY_ROLES, ApiKey
from tidepipe_common.text.text import on_one_line

if TYPE_CHECKING:
    from tidepipe_common.security.key_store import KeyStore

keys_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)

StoreOption = Annotated[
    Path,
    typer.Option("--file", metavar="FILE", envvar="TIDEPIPE_API_KEYS", help="The file that holds the keys."),
]
_DAY_S = 86_400.0


Rate = Annotated[float | None, typer.Option("--rate", help="Requests a minute. Default: no limit.")]
Concurrent = Annotated[
    int | None, typer.Option("--concurrent", help="Answers at a time (a request has n of them).")
]
TokensPerMinute = Annotated[
    float | None,
    typer.Option("--tokens-per-minute", help="Tokens of prompts and answers. Default: no limit."),
]
StoredBytes = Annotated[
    int | None,
    typer.Option("--stored-bytes", help="Of files, batches and responses. Default: as the router says."),
]
StoredItems = Annotated[
    int | None, typer.Option("--stored-items", help="How many of these. Default: as the router says.")
]

Learning = Annotated[
    Literal["on", "off"] | None,
    typer.Option(
        "--learning", metavar="on|off", help="May the length predictor learn from its answers? Default: on."
    ),
]


@keys_app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    file: StoreOption,
    role: Annotated[
        list[str] | None, typer.Option("--role", help=f"{', '.join(KEY_ROLES)}; repeatable.")
    ] = None,
    days: Annotated[
        float | None,
        typer.Option("--days", min=0.001, max=36_500.0, help="Days until it expires. Default: never."),
    ] = None,
    rate: Rate = None,
    concurrent: Concurrent = None,
    tokens_per_minute: TokensPerMinute = None,
    stored_bytes: StoredBytes = None,
    stored_items: StoredItems = None,
    learning: Learning = None,
) -> None:
    """Make a key and print it. It is shown this once: only a digest is kept."""
    record, key = _store(file).add(
        name,
        role or ["inference"],
        lifetime_s=None if days is None else days * _DAY_S,
        requests_per_minute=rate,
        max_concurrent=concurrent,
        tokens_per_minute=tokens_per_minute,
        stored_bytes=stored_bytes,
        stored_items=stored_items,
        unlearned=learning == "off",
    )
    print(f"{_line(record)}\nThis is the only time that the key is shown:", file=sys.stderr)
    print(key)


@keys_app.command("limit")
def limit(
    key_id: Annotated[str, typer.Argument(help="Its id, as listed.")],
    file: StoreOption,
    rate: Rate = None,
    concurrent: Concurrent = None,
    tokens_per_minute: TokensPerMinute = None,
    stored_bytes: StoredBytes = None,
    stored_items: StoredItems = None,
    learning: Learning = None,
) -> None:
    """Change what a key may use; running clusters know within a second. 0 lifts a limit."""
    given = {
        "requests_per_minute": rate,
        "max_concurrent": concurrent,
        "tokens_per_minute": tokens_per_minute,
        "stored_bytes": stored_bytes,
        "stored_items": stored_items,
    }
    limits = {name: value or None for name, value in given.items() if value is not None}
    if learning is not None:
        limits["unlearned"] = learning == "off" or None
    if not limits:
        raise ConfigError("name a limit to change, such as --stored-items 1000")
    store = _store(file)
    store.limit(key_id, **limits)
    print(next(_line(key) for key in store.list() if key.key_id == key_id), file=sys.stderr)


@keys_app.command("list")
def list_keys(file: StoreOption, as_json: AsJson = False) -> None:
    """Show all keys, without their secrets."""
    keys = _store(file).list()
    if as_json:
        print(json.dumps({"keys": [_fields(key) for key in keys]}))
        return
    for key in keys:
        print(_line(key))


@keys_app.command("revoke")
def revoke(key_id: Annotated[str, typer.Argument(help="Its id, as listed.")], file: StoreOption) -> None:
    """End a key. Running clusters refuse it within a second."""
    _store(file).revoke(key_id)
    print(f"revoked {key_id}", file=sys.stderr)


def _store(file: Path) -> KeyStore:
    from tidepipe_common.security.key_store import KeyStore  # late, so that `tidepipe --help` stays quick

    return KeyStore(file)


def _state(key: ApiKey) -> str:
    if key.revoked:
        return "revoked"
    return "expired" if key.expires is not None and key.expires <= time.time() else "valid"


def _fields(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.key_id,
        "name": key.name,
        "roles": sorted(key.roles),
        "state": _state(key),
        "created": key.created,
        "expires": key.expires,
        "requests_per_minute": key.requests_per_minute,
        "max_concurrent": key.max_concurrent,
        "tokens_per_minute": key.tokens_per_minute,
        "stored_bytes": key.stored_bytes,
        "stored_items": key.stored_items,
        "learning": "off" if key.unlearned else "on",
    }


def _line(key: ApiKey) -> str:
    limits = [
        text
        for value, text in (
            (key.requests_per_minute, f"{key.requests_per_minute:g}/min" if key.requests_per_minute else ""),
            (key.max_concurrent, f"{key.max_concurrent} at a time"),
            (key.tokens_per_minute, f"{key.tokens_per_minute or 0:g} tokens/min"),
            (key.stored_bytes, f"{key.stored_bytes} bytes stored"),
            (key.stored_items, f"{key.stored_items} items stored"),
            (key.unlearned, "not learned from"),
        )
        if value
    ]
    expiry = (
        "" if key.expires is None else time.strftime(" until %Y-%m-%d %H:%M", time.localtime(key.expires))
    )
    facts = f"{key.key_id}  {_state(key)}{expiry}  {','.join(sorted(key.roles))}"
    return f"{facts}  {on_one_line(key.name)}  {' '.join(limits)}"
