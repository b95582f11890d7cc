"""Which instance a call is for, where several are behind one address: a router below a router is one for each
of its models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    import grpc

CALLED_INSTANCE = "tidepipe-instance"
"""Key of the metadata; whoever is alone at an address does not look."""


def metadata_text(instance_id: str) -> str:
    """As metadata can carry it, which are ASCII."""
    return quote(instance_id)


def called_instance(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Name of the instance that is called; empty if the caller does not say."""
    for key, value in context.invocation_metadata() or ():
        if key == CALLED_INSTANCE and isinstance(value, str):
            return unquote(value)
    return ""
