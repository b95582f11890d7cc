"""What an instance in virtual time says of its sequences: the controller's own rules, asked about jobs."""

from __future__ import annotations

import numpy as np

from controller.scheduler.slack import Decoding, Rows, SlackReport, tokens_ahead, tokens_ahead_each
from router.scheduler.instance_report import Slack
from simulator.decode_batch import DecodeBatch
from simulator.job import Job


def decoding_job(job: Job, produced: int, context: int) -> Decoding:
    """One that has so many tokens by now. context: of one sequence at most."""
    ahead = tokens_ahead(job.expected, produced, context - job.prompt)
    return Decoding(job.begun_at, produced - job.given, ahead, job.slo.tpot_s)


def decoding_rows(rounds: DecodeBatch, context: int, short: float = 0.0) -> Rows:
    """Of all that take part in the rounds, the numbers of a `Decoding`. short: of their rounds, what is not
    over yet."""
    prompt, expected, first_at, _, _, tpot_s, begun, given = rounds.columns
    produced = begun + (rounds.number - short)
    ahead = tokens_ahead_each(expected, produced, context - prompt)
    return np.stack((first_at, produced - given, ahead, tpot_s), axis=1)


def running_rows(rounds: DecodeBatch, context: int) -> tuple[Rows, Rows]:
    """Of all that take part in the rounds, each the numbers of a `Turnover`; and of those who had their first
    token in time, of a `Decoding`. context: of one sequence at most."""
    prompt, _, first_at, due, ttft_s, _, _, given = rounds.columns
    decoding = decoding_rows(rounds, context)
    output = given + decoding[:, 1] + decoding[:, 2]
    return np.stack((prompt, output, ttft_s), axis=1), decoding[first_at <= due]


def as_points(found: SlackReport | None, now: float) -> Slack:
    """As the router keeps it."""
    if found is None:
        return Slack()
    return Slack(found.count, now + found.mean_s, now + found.low_s, now + found.low_latest_s)
