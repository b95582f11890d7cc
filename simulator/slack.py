"""What an instance in virtual time says of its sequences: the controller's own rules, asked about jobs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from controller.scheduler.slack import Decoding, Rows, SlackReport, tokens_ahead, tokens_ahead_each
from router.scheduler.instance_report import Slack
from simulator.decode_batch import DecodeBatch
from simulator.job import Job


def decoding_job(job: Job, produced: int, context: int) -> Decoding:
    """One that has so many tokens by now. context: of one sequence at most."""
    ahead = tokens_ahead(job.expected, produced, context - job.prompt)
    return Decoding(job.first, produced, ahead, job.slo.tpot_s)


def decoding_rows(rounds: DecodeBatch, context: int) -> Rows:
    """Of all that take part in the rounds, the numbers of a `Decoding`."""
    prompt, expected, first_at, _, _, tpot_s, begun = rounds.columns
    produced = begun + rounds.number
    ahead = tokens_ahead_each(expected, produced, context - prompt)
    return np.stack((first_at, produced, ahead, tpot_s), axis=1)


def running_rows(rounds: DecodeBatch, context: int) -> tuple[Rows, Rows]:
    """Of all that take part in the rounds, each the numbers of a `Turnover`; and of those who had their first
    token in time, of a `Decoding`. context: of one sequence at most."""
    prompt, _, first_at, due, ttft_s, _, _ = rounds.columns
    decoding = decoding_rows(rounds, context)
    output = decoding[:, 1] + decoding[:, 2]
    return np.stack((prompt, output, ttft_s), axis=1), decoding[first_at <= due]


def as_points(found: SlackReport | None, now: float) -> Slack:
    """As the router keeps it."""
    if found is None:
        return Slack()
    return Slack(found.count, now + found.mean_s, now + found.low_s, now + found.low_latest_s)


def growth(decoding: Rows, rounds: DecodeBatch, coming: Iterable[Job]) -> int:
    """By how many tokens the contexts will have grown at their peak, if each ends where it is expected to and
    those that are coming began now. decoding: see `decoding_rows`.

    Each grows by a token a round, so the peak is where one of them ends.
    """
    others = list(coming)
    rest = np.concatenate((decoding[:, 2], [max(0, job.expected - job.generated) for job in others]))
    tokens = np.concatenate((rounds.columns[0] + decoding[:, 1], [job.to_compute for job in others]))
    if not len(rest):
        return 0
    order = np.argsort(rest, kind="stable")
    rest, tokens = rest[order], tokens[order]
    held = tokens.sum()
    going_on = held - np.cumsum(tokens) + tokens
    peak = (going_on + np.arange(len(rest), 0, -1) * rest).max()
    return max(0, int(peak - held))


def expected_mean(rounds: DecodeBatch, others: Iterable[Job]) -> int:
    """Tokens that an output has, as expected of those that are there; 0 if there are none."""
    known = [job.expected for job in others]
    count = len(rounds) + len(known)
    return (int(rounds.columns[1].sum()) + sum(known)) // count if count else 0
