"""What an instance in virtual time says of its sequences: the controller's own rules, asked about jobs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from controller.scheduler.slack import Decoding, SlackReport, tokens_ahead, tokens_ahead_each
from controller.scheduler.step_budget import Rows
from router.scheduler.instance_report import Slack
from simulator.decode_batch import DecodeBatch
from simulator.job import Job


def decoding_job(job: Job, produced: int, context: int) -> Decoding:
    """One that has so many tokens by now. context: of one sequence at most."""
    ahead = tokens_ahead(job.expected, produced, context - job.prompt)
    return Decoding(job.first, produced, ahead, job.slo.tpot_s)


def decoding_rounds(rounds: DecodeBatch, context: int) -> list[Decoding]:
    """All that take part in the rounds."""
    number = rounds.number
    return [decoding_job(job, job.generated + number - job.start_round, context) for job in rounds]


def running_rows(rounds: DecodeBatch, context: int) -> tuple[Rows, Rows]:
    """Of all that take part in the rounds, each the numbers of a `Turnover`; and of those who had their first
    token in time, of a `Decoding`. context: of one sequence at most."""
    prompt, expected, first_at, due, ttft_s, tpot_s, begun = rounds.columns
    produced = begun + rounds.number
    ahead = tokens_ahead_each(expected, produced, context - prompt)
    decoding = np.stack((first_at, produced, ahead, tpot_s), axis=1)
    return np.stack((prompt, produced + ahead, ttft_s), axis=1), decoding[first_at <= due]


def as_points(found: SlackReport | None, now: float) -> Slack:
    """As the router keeps it."""
    if found is None:
        return Slack()
    return Slack(found.count, now + found.mean_s, now + found.low_s, now + found.low_latest_s)


def growth(decoding: Iterable[Decoding], rounds: DecodeBatch, coming: Iterable[Job]) -> int:
    """By how many tokens the contexts will have grown at their peak, if each ends where it is expected to and
    those that are coming began now."""
    number = rounds.number
    ends = [
        (int(one.ahead), job.prompt + job.generated + number - job.start_round)
        for one, job in zip(decoding, rounds, strict=True)
    ]
    held = rounds.context
    for job in coming:
        ends.append((max(0, job.expected - job.generated), job.to_compute))
        held += job.to_compute
    return max(0, _peak(ends) - held)


def expected_mean(jobs: Iterable[Job]) -> int:
    """Tokens that an output has, as expected of those that are there; 0 if there are none."""
    known = [job.expected for job in jobs]
    return sum(known) // len(known) if known else 0


def _peak(ends: list[tuple[int, int]]) -> int:
    """Most tokens at any time, of sequences that grow by one a round: (rounds left, tokens now) of each."""
    ends.sort()
    growing, held, peak = len(ends), sum(tokens for _, tokens in ends), 0
    for rest, tokens in ends:
        peak = max(peak, held + growing * rest)
        growing -= 1
        held -= tokens
    return peak
