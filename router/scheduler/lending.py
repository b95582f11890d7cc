"""Beginnings of prompts that one instance could fetch from another one instead of computing them.

What Mooncake's conductor weighs (arXiv 2407.00079, algorithm 1), by the rule that the instance itself
applies when the request comes (`tidepipe_common/latency/transfer.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from router.scheduler.request import RouteRequest
from router.scheduler.view import InstanceView
from tidepipe_common.latency.transfer import quicker_fetched
from tidepipe_common.latency.work import PrefillWork, chunk_pairs


class Lender(NamedTuple):
    """Who holds most of a prompt: so many tokens."""

    tokens: int
    view: InstanceView


def lender_of(request: RouteRequest, views: Iterable[InstanceView]) -> Lender | None:
    """The instance that could lend the longest beginning; None: nobody holds any, or it needs none."""
    if not request.prefix or request.brought:
        return None
    holders = [
        Lender(held, view)
        for view in views
        if view.transfer.token_bytes > 0.0 and (held := view.held_tokens(request))
    ]
    # Of equals the one with the least to do: it reads beside its steps.
    return min(holders, key=lambda one: (-one.tokens, one.view.tokens, one.view.instance_id), default=None)


def borrowing(request: RouteRequest, view: InstanceView, lender: Lender | None) -> RouteRequest:
    """The request as it would come to an instance: with what the lender has of it and the instance has not,
    if fetching that takes less time from all than computing it."""
    if lender is None or lender.view is view or not view.fetches_from(lender.view.instance_id):
        return request
    if lender.view.transfer.token_bytes != view.transfer.token_bytes:
        return request
    found = view.cached_tokens(request)
    tokens = lender.tokens - found
    near = view.transfer.is_near(lender.view.transfer.node)
    way = view.transfer.way(lender.view.transfer.node)
    if tokens <= 0 or way.bytes_per_s <= 0.0:
        return request
    fetch_s = way.seconds(tokens * view.transfer.token_bytes, view.under_way(near=near))
    compute_s = view.facts.prefill.seconds(PrefillWork(tokens, chunk_pairs(found, tokens)))
    if not quicker_fetched(fetch_s, compute_s, view.sequences):
        return request
    return replace(
        request, lender=lender.view.instance_id, lent=lender.tokens, lent_near=near, fetch_s=fetch_s
    )
