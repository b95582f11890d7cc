"""What the brain did inside vLLM: log lines, a summary now and then, and a file that can be drawn."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from controller.scheduler.actions import PhaseSwitched
from tidepipe_common.errors import ConfigError
from tidepipe_common.telemetry.chrome_trace import write_chrome_trace
from tidepipe_common.types.plan import Phase
from tidepipe_common.types.timeline import PhaseTurn, StageSpan, Timeline

SUMMARY_EVERY_S = 30.0
TURN_EVERY_S = 1.0
"""Between two lines of phases: where memory is short they may turn with every step. The timeline has all."""
SIZE_EVERY_S = 10.0
"""Between two lines of step sizes, likewise."""


class Record:
    """Counters since start. All times are one steady clock's, seconds."""

    def __init__(self, say: Callable[[str], None], timeline: str, stages: int) -> None:
        """say: gets a line for the log. timeline: the file's path, or empty."""
        self.counts: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.switches: Counter[tuple[str, str, str]] = Counter()
        self.stage_s = 0.0
        self._say = say
        self._stages = stages
        self._summary_at = 0.0
        self._turn_at = -TURN_EVERY_S
        self._size_at = -SIZE_EVERY_S
        self._unsaid = 0
        self._told: Counter[str] = Counter()
        self._file: TextIO | None = None
        if timeline:
            try:
                # By the line: whoever is killed leaves all but the last one.
                self._file = Path(timeline).open("w", encoding="utf-8", buffering=1)  # noqa: SIM115
            except OSError as error:
                raise ConfigError(f"cannot write the timeline {timeline}: {error.strerror}") from error
            self._write({"timeline": 1, "stages": stages})

    def turned(self, turn: PhaseSwitched, now: float) -> None:
        """The phase turned."""
        self.counts["phase switches"] += 1
        before, after, reason = turn.before.value, turn.after.value, str(turn.reason)
        # Some reasons end with a detail behind a colon, which would make endless label values.
        self.switches[before, after, turn.reason.text.partition(":")[0]] += 1
        if now - self._turn_at >= TURN_EVERY_S:
            more = f" (and {self._unsaid} turns since the last one that was said)" if self._unsaid else ""
            self._say(f"phase {before} -> {after}: {reason}{more}")
            self._turn_at, self._unsaid = now, 0
        else:
            self._unsaid += 1
        self._write({"at_s": now, "before": before, "after": after, "reason": reason})

    def resized(self, tokens: int, why: str, now: float) -> None:
        """Steps have another size from now on."""
        if now - self._size_at >= SIZE_EVERY_S:
            self._say(f"steps of {tokens} tokens: {why}")
            self._size_at = now
        self._write({"at_s": now, "step_tokens": tokens, "reason": why})

    def step(
        self,
        step_id: int,
        phase: str,
        tokens: int,
        decode_rows: int,
        went: float,
        back: float,
        seconds: float,
    ) -> None:
        """A step is back. seconds: that each stage took for it."""
        self.counts["steps"] += 1
        self.counts["tokens"] += tokens
        self.stage_s += seconds
        self._write(
            {
                "step": step_id,
                "phase": phase,
                "tokens": tokens,
                "decode_rows": decode_rows,
                "went_s": round(went, 6),
                "back_s": round(back, 6),
                "stage_s": round(seconds, 6),
            }
        )

    def count(self, what: str) -> None:
        """Something that seldom happens; said in the log the first time."""
        self.events[what] += 1
        if self.events[what] == 1:
            self._say(what)

    def maybe_summary(self, now: float, more: Callable[[], str]) -> None:
        """A line of counters, from time to time, if anything happened."""
        if now - self._summary_at < SUMMARY_EVERY_S:
            return
        self._summary_at = now
        every = self.counts + self.events
        if every == self._told:
            return
        self._told = every
        self._say(", ".join(f"{name} {value}" for name, value in every.items()) + more())

    def close(self) -> None:
        """Nothing more comes."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line, separators=(",", ":")) + "\n")


def read_timeline(path: Path) -> Timeline:
    """What a file of such lines says; ConfigError if it is none.

    Only when steps left and came back is known: a stage's span is reckoned from that and from what it took.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        timeline = Timeline("vllm", int(lines[0]["stages"]))
        for line in lines[1:]:
            if "step" in line:
                for stage in range(timeline.stages):
                    end = line["back_s"] - line["stage_s"] * (timeline.stages - 1 - stage)
                    timeline.spans.append(
                        StageSpan(
                            stage,
                            line["step"],
                            Phase(line["phase"]),
                            line["tokens"],
                            line["decode_rows"],
                            end - line["stage_s"],
                            end,
                        )
                    )
            elif "before" in line:
                before, after = Phase(line["before"]), Phase(line["after"])
                timeline.turns.append(PhaseTurn(line["at_s"], before, after, line["reason"]))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"{path} is no timeline of tidepipe.vllm ({error!r})") from error
    return timeline


def draw(source: Path, target: Path) -> int:
    """Such a file as a Chrome trace (ui.perfetto.dev); returns the number of steps. ConfigError."""
    return write_chrome_trace([read_timeline(source)], target)
