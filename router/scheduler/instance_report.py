"""The report of an instance, as routing reads it: phase, prefill window, slack, memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.scheduler.prefill import NOTHING
from tidepipe_common.latency.work import PrefillWork
from tidepipe_common.types.holdings import PrefixHoldings
from tidepipe_common.types.kv_transfer import NO_TRANSFER, KvTransfer
from tidepipe_common.types.plan import Phase

FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Slack:
    """Saved TPOT of the decoding sequences, as points in time (the router's clock).

    A sequence with n tokens since its first token at f is *due* at f + n * TPOT: it has saved due - now
    seconds (Algorithm 1: saved_i). So means and quantiles of due times say everything, at any later time.

    count: decoding sequences. mean_due: mean of their due times. low_due: their 10th percentile.
    low_latest: what nearly all reach of the latest times at which decoding must go on so that the sequence
        still meets its TPOT at its expected end: due + remaining * (TPOT - decode step time). Above low_due
        while decoding is faster than promised.
    """

    count: int = 0
    mean_due: float = FOREVER
    low_due: float = FOREVER
    low_latest: float = FOREVER


@dataclass(frozen=True, slots=True)
class InstanceReport:
    """One report. Times in seconds of the router's clock (the client converts ages), memory in tokens.

    taken: when it was true. accepted: sequences that the instance had taken over from this router by then,
        counted over the whole connection; those routed later are not part of this report.
    switched: when the present phase began.
    window: prompts that belong to the present prefill window (all that arrived since the last decode
        phase ended, also those computed already); empty while decoding without waiting prompts.
    left: the part of `window` that is not computed yet.
    window_deadline: the earliest time at which a sequence of the window must have its first token.
    sequences: all that it has. tokens: prompt and output so far of all of them.
    kv_free, kv_total: tokens. kv_peak: tokens in use at the forecast peak, of the sequences it has.
    expected_output: tokens that an answer is expected to have there, whatever it answers; 0: unknown.
    serving: all its stages answer, and it takes new sequences. stages_down: one does not. policy: by which it
        schedules.
    holdings: what is new of the KV blocks that it can use again; None: it does not.
    transfer: of KV blocks that come to it from other instances.
    barred: instances from which it fetches nothing for now, because that failed.
    """

    taken: float
    accepted: int
    phase: Phase
    switched: float
    sequences: int
    tokens: int
    kv_free: int
    kv_total: int
    kv_peak: int = 0
    expected_output: int = 0
    window: PrefillWork = NOTHING
    left: PrefillWork = NOTHING
    window_deadline: float = FOREVER
    slack: Slack = field(default_factory=Slack)
    serving: bool = True
    stages_down: bool = False
    policy: str = ""
    holdings: PrefixHoldings | None = None
    transfer: KvTransfer = NO_TRANSFER
    barred: frozenset[str] = frozenset()
