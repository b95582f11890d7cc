"""Lists in pages, and the query strings that ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.numerals import count
from tidepipe_common.openai.answers import Batch, BatchList, File, FileList, PageEnds
from tidepipe_common.responses.answers import InputItemList


@dataclass(frozen=True, slots=True)
class Page:
    """What part of a list is wanted: `limit` entries at most, behind the one named `after`."""

    limit: int
    after: str | None
    newest_first: bool


def parameter(request: Request, name: str) -> str | None:
    """Of the query string; None if it is not there. InvalidRequestError if it is there twice."""
    values = request.query_params.getlist(name)
    if len(values) > 1:
        raise InvalidRequestError(f"{name} stands {len(values)} times in the query string; send one", name)
    return values[0] if values else None


def page_of(request: Request, *, most: int, default: int) -> Page:
    """The page that a request asks for. InvalidRequestError names what cannot be meant."""
    order = parameter(request, "order")
    if order not in (None, "asc", "desc"):
        raise InvalidRequestError(f"order must be 'asc' or 'desc', got {order[:40]!r}", "order")
    text = parameter(request, "limit")
    limit = default if text is None else count(text, most)
    if not limit:
        raise InvalidRequestError(
            f"limit must be a number from 1 to {most}, got {text and text[:40]!r}", "limit"
        )
    return Page(limit, parameter(request, "after"), order != "asc")


def file_list(files: list[File], limit: int) -> FileList:
    """A page; there is one file more than `limit` if there is a next page."""
    page, ids = files[:limit], [one["id"] for one in files]
    return {"object": "list", "data": page, **_ends(ids, limit)}


def batch_list(batches: list[Batch], limit: int) -> BatchList:
    """A page, as of files."""
    page, ids = batches[:limit], [one["id"] for one in batches]
    return {"object": "list", "data": page, **_ends(ids, limit)}


def item_list(items: list[dict[str, Any]], limit: int) -> InputItemList:
    """A page, as of files."""
    page, ids = items[:limit], [item["id"] for item in items]
    return {"object": "list", "data": page, **_ends(ids, limit)}


def _ends(ids: Sequence[str], limit: int) -> PageEnds:
    shown = ids[:limit]
    return {
        "first_id": shown[0] if shown else None,
        "last_id": shown[-1] if shown else None,
        "has_more": len(ids) > limit,
    }
