"""Names of KV blocks by their content: equal beginnings have equal keys, here and at every other process."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

KEY_BYTES = 16
"""Of a block's key. Whoever can choose tokens must not be able to make two contents meet in one."""
STRIDE = 8
"""Blocks between two keys by which a prompt's beginning is told between processes: at 16 tokens a block 128
tokens, less than a step computes for the price of reading the weights once."""
MAX_TOLD = 16_384
"""Keys that are told of one instance at most; where it holds more, every 16th block's is told, or fewer."""
INLINE_TOKENS = 2000
"""Of prompts that come together; the keys of more are reckoned in a thread."""
_TOKEN = "I"


def root_key(tenant: str, cache_salt: str = "") -> bytes:
    """The parent of first blocks: who shares it shares blocks of equal beginnings.

    tenant: whose requests they are; empty where all are one. cache_salt: the request's own, to keep apart.
    """
    # The length in front, or "ab" + "c" would be "a" + "bc".
    text = f"{len(tenant)}:{tenant}{cache_salt}".encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=KEY_BYTES, person=b"prefix root").digest()


def adapter_root(root: bytes, adapter: str) -> bytes:
    """What takes a root's place for sequences with an adapter: what it computes nobody else may find.

    adapter: its fingerprint; empty: none. An empty root, which shares nothing, stays what it is.
    """
    if not (root and adapter):
        return root
    return blake2b(root + adapter.encode(), digest_size=KEY_BYTES, person=b"adapter root").digest()


def block_keys(
    root: bytes, tokens: Sequence[int], block_size: int, known: Sequence[bytes] = ()
) -> list[bytes]:
    """The keys of all full blocks of `tokens`, ids of a sequence from its first one on.

    known: those of its first blocks, which are not computed again; returns them as well.
    """
    keys = list(known)
    done = len(keys)
    full = len(tokens) // block_size
    if full <= done:
        return keys[:full]
    parent = keys[-1] if keys else root
    data = memoryview(array(_TOKEN, tokens[done * block_size : full * block_size]).tobytes())
    width = block_size * array(_TOKEN).itemsize
    for begin in range(0, len(data), width):
        parent = blake2b(parent + data[begin : begin + width], digest_size=KEY_BYTES).digest()
        keys.append(parent)
    return keys


def told_key(key: bytes) -> int:
    """A block's key as it is told: its first 64 bits. Two that meet cost a wrong guess of the router."""
    return int.from_bytes(key[:8], "little")


def told_keys(root: bytes, tokens: Sequence[int], block_size: int) -> tuple[int, ...]:
    """What the router knows a prompt's beginning by: the key of every STRIDE-th block."""
    return tuple(map(told_key, block_keys(root, tokens, block_size)[STRIDE - 1 :: STRIDE]))
