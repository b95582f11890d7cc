"""Who owns which KV block. All stages have equally many blocks and use the same ids."""

from __future__ import annotations


class BlockAllocator:
    """Accounts of the KV blocks of one instance.

    Invariant: each block is free or owned by exactly one sequence; `check` proves it.
    """

    def __init__(self, blocks: int, block_size: int) -> None:
        """blocks: per stage. block_size: tokens per block."""
        self.total = blocks
        self.block_size = block_size
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def free(self) -> int:
        """Blocks that nobody owns."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks that are owned."""
        return self.total - len(self._free)

    @property
    def capacity_tokens(self) -> int:
        """Tokens that fit if one sequence had all blocks."""
        return self.total * self.block_size

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-tokens // self.block_size)

    def missing(self, blocks: list[int], tokens: int) -> int:
        """Blocks that an owner of `blocks` lacks to hold `tokens` tokens."""
        return max(0, self.blocks_for(tokens) - len(blocks))

    def extend(self, blocks: list[int], tokens: int) -> tuple[int, ...]:
        """Give `blocks` what it lacks to hold `tokens` tokens; returns the new ids.

        ValueError if there are not enough; ask `missing` and `free` first.
        """
        wanted = self.missing(blocks, tokens)
        if wanted > len(self._free):
            raise ValueError(f"{wanted} KV blocks wanted, {len(self._free)} free")
        if not wanted:
            return ()
        given = tuple(self._free[: -wanted - 1 : -1])
        del self._free[-wanted:]
        blocks.extend(given)
        return given

    def release(self, blocks: list[int]) -> None:
        """Take all of `blocks` back and empty the list."""
        self._free.extend(reversed(blocks))
        blocks.clear()

    def check(self, owners: list[list[int]]) -> None:
        """AssertionError unless every block is free or in exactly one of `owners` (for tests)."""
        held = [block for blocks in owners for block in blocks]
        everything = sorted(held + self._free)
        if everything != list(range(self.total)):
            raise AssertionError(f"blocks leaked or owned twice: {len(held)} held, {self.free} free")
