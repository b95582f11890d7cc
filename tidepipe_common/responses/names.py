"""Ids of responses and their items. An item's id says which response it belongs to."""

from __future__ import annotations

import re

_RESPONSE = "resp_"
_ITEM = re.compile(r"[a-z]{2,8}_([0-9a-z-]{1,64})_[io][0-9]{1,6}")
INPUT, OUTPUT = "i", "o"


def response_id(request_id: str) -> str:
    """The id of the response that a request's answer becomes."""
    return _RESPONSE + request_id


def item_id(response: str, kind: str, where: str, number: int) -> str:
    """kind: such as "msg". where: INPUT or OUTPUT."""
    return f"{kind}_{response.removeprefix(_RESPONSE)}_{where}{number}"


def response_of(item: str) -> str | None:
    """The response to which an item of that id belongs; None if it can be none of ours."""
    found = _ITEM.fullmatch(item)
    return None if found is None else _RESPONSE + found[1]
