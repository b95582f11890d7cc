"""API keys: what they look like, and how they are kept.

A key is `tp-ID-SECRET`. ID is public and finds the record; SECRET has 256 random bits. Only a salted BLAKE2b
digest of it is stored. A slow password hash would add nothing: it makes guessing costly where secrets are
few, and nobody guesses 256 bits; but every request would pay for it, and so would every attacker's request.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

PREFIX = "tp"
KEY_ROLES = ("inference", "admin", "monitor")
"""inference: requests. admin: also operations on the cluster. monitor: metrics alone."""

_ID_BYTES = 5
_SECRET_BYTES = 32
_SALT_BYTES = 16
_PARTS = 3


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is known after it was made. Times in Unix seconds.

    expires: None for never. requests_per_minute, max_concurrent (answers at a time), tokens_per_minute
    (prompts and answers): None for no limit. stored_bytes, stored_items: of its files, batches and responses;
    None for what the router allows every key. unlearned: nothing is learned from how long its answers are.
    """

    key_id: str
    name: str
    roles: frozenset[str]
    created: float
    expires: float | None = None
    revoked: bool = False
    requests_per_minute: float | None = None
    max_concurrent: int | None = None
    tokens_per_minute: float | None = None
    stored_bytes: int | None = None
    stored_items: int | None = None
    unlearned: bool = False


@dataclass(frozen=True, slots=True)
class SecretDigest:
    """What is stored of a secret."""

    salt: bytes
    digest: bytes

    def matches(self, secret: str) -> bool:
        """In time that does not depend on where they differ."""
        return hmac.compare_digest(_digest(secret, self.salt), self.digest)


NOBODY = SecretDigest(b"\0" * _SALT_BYTES, b"\0" * 32)
"""Compared with when an id is unknown, so that the answer takes as long as for a wrong secret."""


def new_key() -> tuple[str, str, SecretDigest]:
    """(id, the key as its owner gets it, what is stored)."""
    key_id = secrets.token_hex(_ID_BYTES)
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    salt = secrets.token_bytes(_SALT_BYTES)
    return key_id, f"{PREFIX}-{key_id}-{secret}", SecretDigest(salt, _digest(secret, salt))


def split_key(presented: str) -> tuple[str, str] | None:
    """(id, secret) of what somebody presented, or None if it does not look like a key."""
    parts = presented.split("-", _PARTS - 1)
    if len(parts) != _PARTS or parts[0] != PREFIX:
        return None
    return parts[1], parts[2]


def _digest(secret: str, salt: bytes) -> bytes:
    return hashlib.blake2b(secret.encode("utf-8", "surrogateescape"), salt=salt, digest_size=32).digest()
