"""What the service and its training process tell each other."""

from __future__ import annotations

from dataclasses import dataclass

ANSWERS, SAMPLES = "answers.bin", "samples.npz"
CHAMPION, CHALLENGER, VERDICT = "champion", "challenger", "verdict.json"
"""Names in a job's folder."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Pinball losses on the held-back answers, tokens; standard_error: of their difference.

    failure: why there is no challenger; empty if there is.
    """

    better: bool
    champion: float = 0.0
    challenger: float = 0.0
    standard_error: float = 0.0
    failure: str = ""
