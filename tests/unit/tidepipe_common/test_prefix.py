"""Block keys: equal where all that stands before is equal, and nowhere else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidepipe_common.prefix import block_keys, root_key

TOKENS = st.lists(st.integers(0, 3), max_size=40)
ROOT = root_key("someone")


@given(TOKENS, TOKENS, st.integers(1, 5))
def test_keys_are_equal_as_far_as_the_blocks_are(one: list[int], other: list[int], size: int) -> None:
    common = 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    pairs = zip(block_keys(ROOT, one, size), block_keys(ROOT, other, size), strict=False)
    same = [a == b for a, b in pairs]
    assert same == [index < common // size for index in range(len(same))]


@given(TOKENS, st.integers(1, 5), st.integers(0, 40))
def test_keys_go_on_behind_known_ones(tokens: list[int], size: int, cut: int) -> None:
    whole = block_keys(ROOT, tokens, size)
    assert len(whole) == len(tokens) // size
    assert block_keys(ROOT, tokens, size, whole[: cut % (len(whole) + 1)]) == whole


def test_tenants_and_salts_share_nothing() -> None:
    roots = {
        root_key(*names) for names in (("ab", ""), ("a", "b"), ("", "ab"), ("b", "a"), ("", ""), ("1:", ""))
    }
    assert len(roots) == 6
    assert len({block_keys(root, range(16), 16)[0] for root in roots}) == 6
