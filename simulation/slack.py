"""The slack that an instance in virtual time reports, and what it is reckoned from."""

from __future__ import annotations

import math

from controller.core.promise import PROMISED
from controller.core.prompt_pace import MEMORY_S
from router.core.status import FOREVER, Slack
from simulation.job import Job
from simulation.rounds import Rounds


class PromptShare:
    """The share of the time that prompts took lately, exponentially forgotten."""

    def __init__(self, born: float) -> None:
        self._spent_s = 0.0
        self._noted = born

    def note(self, spent_s: float, now: float) -> None:
        """Prompts took so long until now."""
        self._forget(now)
        self._spent_s += spent_s

    def at(self, now: float) -> float:
        """From 0 to 1."""
        self._forget(now)
        return min(1.0, self._spent_s / MEMORY_S)

    def _forget(self, now: float) -> None:
        self._spent_s *= math.exp(-max(0.0, now - self._noted) / MEMORY_S)
        self._noted = now


def reckon_slack(rounds: Rounds, idle: list[Job], round_s: float) -> tuple[Slack, int]:
    """Slack, and by how many tokens the contexts will have grown at their peak.

    idle: requests that do not decode yet. round_s: a round with all of them, and the prompts between.
    """
    if not (rounds or idle):
        return Slack(), 0
    # Round by round a sequence is due a TPOT later, and has one round less to go.
    now = rounds.number
    decoding = list(rounds)
    dues = [job.due_at_zero + now * job.slo.tpot_s for job in decoding]
    rests = [rest if (rest := job.expected_round - now) > 0 else 0 for job in decoding]
    latest = [
        due + rest * (PROMISED * job.slo.tpot_s - round_s)
        for job, due, rest in zip(decoding, dues, rests, strict=True)
    ]
    ends = [
        (rest, job.prompt + job.generated + now - job.start_round)
        for job, rest in zip(decoding, rests, strict=True)
    ]
    # Those without a second token have no time to lose yet, but must not find the instance too slow.
    latest += [FOREVER if round_s <= PROMISED * job.slo.tpot_s else -FOREVER for job in idle]
    growth = _peak(ends) - rounds.context
    low = sorted(latest)[len(latest) // 10]
    if not dues:
        return Slack(0, low_latest=low), growth
    return Slack(len(dues), sum(dues) / len(dues), sorted(dues)[len(dues) // 10], low), growth


def _peak(ends: list[tuple[int, int]]) -> int:
    """Most tokens at any time, of sequences that grow by one a round: (rounds left, tokens now) of each."""
    ends.sort()
    growing, held, peak = len(ends), sum(tokens for _, tokens in ends), 0
    for rest, tokens in ends:
        peak = max(peak, held + growing * rest)
        growing -= 1
        held -= tokens
    return peak
