"""A request as routing sees it."""

from __future__ import annotations

from dataclasses import dataclass

from router.scheduler.prefix_index import Prefix
from router.scheduler.slo import SloTarget
from tidepipe_common.settings.defaults import PRIORITY_S

UNSAID_TOKENS = 256
"""Of an answer whose length nobody limited: they count in its tenant's share and are charged
in advance; what it took is settled at its end."""


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """One sequence that needs an instance. Counts of tokens, times in seconds of the router's clock.

    prompt_tokens: to be computed: prompt, and output from an earlier stay at another instance.
    max_tokens: output at most, 0 if nobody limited it; how long it will be is expected by the instance.
    expires: when it leaves the pending queue unserved; None for never. sheds: it may be refused at once if it
        would not be served in time.
    tenant: whose it is; empty where everybody is one.
    priority: lower goes sooner among its tenant's. background: nobody waits for it.
    prefix: by what its prompt's beginning is found at instances; see PrefixIndex.
    needs: what not every instance does; see tidepipe_common/types/needs.py.
    giver: the instance that has it, or had it. brought: tokens of it whose KV blocks come along from there.
        wish: the instance where it is to go on, if that takes it; empty: any.
    lent: tokens of its beginning that the instance `lender` has, and that the one where it goes fetches from
        there, in about fetch_s, within one node or not (lent_near); see lending.py. Other than at that
        instance these are nobody's business.
    beside_s: that computing its prompt still takes while its blocks can go ahead. ahead: the instance to
        which they have gone ahead, or will have in ahead_s.
    """

    request_id: str
    prompt_tokens: int
    max_tokens: int
    slo: SloTarget
    arrived: float
    expires: float | None = None
    sheds: bool = False
    tenant: str = ""
    priority: int = 0
    background: bool = False
    prefix: Prefix = ()
    needs: frozenset[str] = frozenset()
    giver: str = ""
    brought: int = 0
    wish: str = ""
    lender: str = ""
    lent: int = 0
    fetch_s: float = 0.0
    lent_near: bool = False
    beside_s: float = 0.0
    ahead: str = ""
    ahead_s: float = 0.0

    @property
    def cost(self) -> float:
        """Tokens by which tenants' shares are counted: prompt, and output as far as it can be foreseen."""
        return 1.0 + self.prompt_tokens + self.foreseen

    @property
    def foreseen(self) -> int:
        """Output tokens that can be foreseen without knowing of other answers."""
        return min(self.max_tokens or UNSAID_TOKENS, UNSAID_TOKENS)

    @property
    def longest(self) -> int:
        """Prompt and output together, if the output grows as long as it may."""
        return self.prompt_tokens + self.max_tokens

    @property
    def turn(self) -> tuple[bool, float]:
        """Who has the least is next: when its TTFT target ends, later with a higher priority; first those
        that somebody waits for."""
        return self.background, self.first_token_due + PRIORITY_S * self.priority

    @property
    def first_token_due(self) -> float:
        """When its TTFT target ends."""
        return self.arrived + self.slo.ttft_s


@dataclass(frozen=True, slots=True)
class Decoding:
    """A sequence that decodes, as routing sees it: where, and its output tokens so far."""

    request_id: str
    instance_id: str
    output_tokens: int
