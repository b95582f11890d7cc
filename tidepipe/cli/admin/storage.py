"""`tidepipe admin storage`: who has stored how much."""

from __future__ import annotations

from typing import Any

from tidepipe.cli.admin.show import show
from tidepipe.cli.options import AsJson, Endpoint


def storage(endpoint: Endpoint, as_json: AsJson = False) -> None:
    """Files, batches and responses by API key, and what each key may store."""
    show(endpoint, as_json, lambda client: client.storage(), _print)


def _print(answer: dict[str, Any]) -> None:
    # Late, so that `tidepipe --help` stays quick.
    from rich.console import Console

    from tidepipe.cli.admin.table import Column, named, print_table

    columns = (
        Column("owner"),
        Column("name", 2),
        *(Column(what, 3, right=True) for what in ("files", "batches", "responses")),
        *(Column(what, 1, right=True) for what in ("bytes", "may be")),
        Column("items may be", 4, right=True),
    )
    rows = []
    for one in answer["owners"]:
        share = int(answer["files_max_bytes"]) // (2 if one["owner"] else 1)
        counts = (str(one[what]) for what in ("files", "batches", "responses", "bytes"))
        most = str(min(share, int(one.get("max_bytes") or share)))
        rows.append(
            (named(one["owner"]) or "-", named(one["name"]), *counts, most, str(one.get("max_items") or "-"))
        )
    print_table(Console(), columns, rows)
