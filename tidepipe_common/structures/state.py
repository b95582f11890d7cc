"""Outputs of a given form: which tokens may come next.

The state of a grammar is a function of the output alone. It is built anew from a sequence's history wherever
the sequence begins again, so it survives preemption, a lost worker and a move to another instance.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

from tidepipe_common.structures.errors import StructureError, in_our_words
from tidepipe_common.structures.grammar import make_matcher, make_tokenizer
from tidepipe_common.types.structure import Structure

Allowed = npt.NDArray[np.bool_]
MAX_BUILT = 4
"""Grammars that are kept: a step in which all answers of a request begin builds theirs once."""


class GrammarState:
    """One sequence's place in its grammar.

    A grammar that fails while it runs (too complex for the library's limits) is an error of its sequence:
    what is there would not conform.
    """

    def __init__(self, matcher: LLMatcher, output: Sequence[int], vocab_size: int, field: str) -> None:
        """field: what in the request asks for the structure."""
        self._matcher = matcher
        self._field = field
        self._vocab_size = vocab_size
        self._failure: StructureError | None = None
        if output:
            matcher.consume_tokens(list(output))
        self.check()

    def allowed(self) -> Allowed:
        """Per token of the vocabulary: may it come next? At least one may."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(packed, count=self._vocab_size, bitorder="little").view(np.bool_)

    def allowed_besides(self, ends: Sequence[int], *, named_by_client: bool) -> Allowed:
        """As `allowed`, without the tokens that end outputs, until the output conforms.

        They may be ordinary ones, which the structure allows. named_by_client: it said which ones.
        If no other token is allowed, the sequence has failed, and the mask means nothing.
        """
        allowed = self.allowed()
        if not self.may_end:
            allowed[[token for token in ends if 0 <= token < self._vocab_size]] = False
            if not allowed.any():
                self.fail(_only_ends("stop_token_ids" if named_by_client else self._field))
                return self.allowed()
        return allowed

    @property
    def may_end(self) -> bool:
        """True if the output so far conforms."""
        return self._matcher.is_accepting()

    def fail(self, error: StructureError) -> None:
        """Let the next token be the sequence's error."""
        self._failure = self._failure or error

    def append(self, token_id: int) -> None:
        """The token was sampled. StructureError if the output does not conform, and never will."""
        self.check()  # the mask may have failed: then any token did
        self._matcher.consume_token(token_id)
        self.check()

    def check(self) -> None:
        """StructureError if the output cannot be held any further."""
        if self._matcher.is_error():
            why = in_our_words(self._matcher.get_error())
            self.fail(
                StructureError(f"the output cannot be held to its structure any further: {why}", self._field)
            )
        if self._failure:
            raise self._failure


def _only_ends(field: str) -> StructureError:
    """There is no token that would not cut the structure short. field: of the request, whose fault it is."""
    whose = "stop_token_ids has" if field == "stop_token_ids" else "the model ends outputs with"
    return StructureError(
        f"the output cannot be held to its structure: {whose} every token that could come next, before the "
        "structure may end",
        field,
    )


class Grammars:
    """Makes grammar states. The tokenizer is read when the first sequence needs it."""

    def __init__(self, read_tokenizer: Callable[[], str], vocab_size: int) -> None:
        """read_tokenizer: the content of tokenizer.json."""
        self._read_tokenizer = read_tokenizer
        self._vocab_size = vocab_size
        self._tokenizers: dict[tuple[int, ...], LLTokenizer] = {}
        self._built: OrderedDict[tuple[Structure, tuple[int, ...]], LLMatcher] = OrderedDict()

    def state(
        self, structure: Structure, eos_token_ids: Sequence[int], output: Sequence[int]
    ) -> GrammarState:
        """Place behind `output` in the grammar of `structure`, which the router has checked."""
        key = (structure, tuple(eos_token_ids))
        matcher = self._built.pop(key, None) or make_matcher(self._tokenizer(key[1]), structure)
        self._built[key] = matcher
        if len(self._built) > MAX_BUILT:
            self._built.popitem(last=False)
        return GrammarState(matcher.deep_copy(), output, self._vocab_size, structure.field)

    def _tokenizer(self, eos_token_ids: tuple[int, ...]) -> LLTokenizer:
        # The model's own end tokens: one entry in practice.
        tokenizer = self._tokenizers.get(eos_token_ids)
        if tokenizer is None:
            tokenizer = make_tokenizer(self._read_tokenizer(), self._vocab_size, eos_token_ids)
            self._tokenizers = {eos_token_ids: tokenizer}
        return tokenizer
