"""Who calls: what is stored or runs for somebody bears their name, and is there for nobody else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from tidepipe_common.security.api_key import ApiKey
from tidepipe_common.security.principals import ADMIN


@dataclass(frozen=True, slots=True)
class Caller:
    """An owner of files, batches and requests.

    owner: public id of the API key, or what the certificate says (all who show one of a role are one owner:
    they cannot be told apart). Empty where nobody is asked who they are: then all are one. sees_all: finds
    what belongs to others, and what was stored before there were owners.
    """

    owner: str
    sees_all: bool = False


ANYBODY = Caller("", sees_all=True)
"""Whoever calls where nobody has to say who they are; and the router itself."""

_current: ContextVar[Caller] = ContextVar("caller", default=ANYBODY)


def with_key(key: ApiKey) -> Caller:
    """The owner of an API key."""
    return Caller(key.key_id, sees_all="admin" in key.roles)


def with_principals(principals: frozenset[str]) -> Caller:
    """Whoever has a certificate, or the cluster token, that stands for these."""
    return Caller("+".join(sorted(principals)), sees_all=ADMIN in principals)


def current() -> Caller:
    """Who made the call that is being answered; set by the door that it came through."""
    return _current.get()


def note_caller(caller: Caller) -> None:
    """Say who makes the call that this task answers."""
    _current.set(caller)


@contextlib.contextmanager
def acting_for(caller: Caller) -> Iterator[None]:
    """Inside the `with`, calls are made by them."""
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)
