"""A journal, read back and replayed, gives identical actions under every policy."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from controller.runtime.journal import (
    VERSION,
    Journal,
    check_journal,
    open_journal,
    read_checked,
    read_scheduler_spec,
)
from controller.scheduler.actions import Action, Dispatch
from controller.scheduler.events import (
    Event,
    LengthPredicted,
    NewSequence,
    PrefixCacheCleared,
    SequenceCancelled,
    SequencesArrived,
    StagesLost,
    StagesReady,
    StepDone,
    Tick,
)
from controller.scheduler.scheduler import Scheduler, SchedulerConfig
from tests.unit.controller.policy_cases import CASES
from tidepipe_common.errors import ConfigError
from tidepipe_common.types.plan import RowError, SampledTokens
from tidepipe_common.types.sampling import Pooling, PositionLogprobs, SamplingParams, TokenLogprob


def scheduler(case: str) -> Scheduler:
    make_policy, victims, admission = CASES[case]
    config = SchedulerConfig(
        context_length=200, eos_token_ids=(0,), block_size=8, victims=victims, admission=admission
    )
    return Scheduler(config, make_policy())


def live_run(case: str, path: Path) -> list[list[Action]]:
    """A run with all kinds of events, written down as it goes."""
    core = scheduler(case)
    done: list[list[Action]] = []
    plans = []
    with path.open("w", encoding="utf-8") as file:
        journal = Journal(file)

        def handle(event: Event) -> None:
            now = 0.1 * len(done) + 1 / 3
            journal.note(event, now)
            done.append(core.on(event, now))
            plans.extend(action.plan for action in done[-1] if isinstance(action, Dispatch))

        sampling = SamplingParams(max_tokens=20, logprobs=1, logit_bias={5: -1.0}, stop_token_ids=(9,))
        vector = SamplingParams(max_tokens=0, pooling=Pooling.LAST)
        handle(SequencesArrived((NewSequence("v", (1, 2), vector),)))
        handle(SequenceCancelled("v"))
        arrivals = tuple(
            NewSequence(f"s{i}", (1, 2, 3) * (i + 1), sampling, (4,), 90.0, prefix_root="0a" * 16)
            for i in range(12)
        )
        handle(SequencesArrived(arrivals))
        handle(LengthPredicted("s1", 10.0, 17.5))
        handle(StagesReady(1, 2, 40))
        for step in range(200):
            if not plans:
                break
            plan = plans.pop(0)
            rows = sum(row.sample for row in plan.rows)
            logprobs = (PositionLogprobs(TokenLogprob(7, -0.1), (TokenLogprob(7, -0.1),)),) * rows
            errors = (RowError(plan.rows[0].key, "no grammar"),) if step == 18 else ()
            handle(StepDone(plan.step_id, SampledTokens((7,) * rows, logprobs, errors), (0.01, 0.02)))
            if step == 15:
                handle(SequenceCancelled("s3"))
                handle(Tick())
            if step == 17:
                handle(PrefixCacheCleared())
            if step == 20:
                failed = plans[0].step_id
                plans.clear()
                handle(StagesLost("gone", failed))
                handle(StagesReady(2, 2, 40))
            if step in (22, 24):
                steps = tuple(plan.step_id for plan in plans)
                plans.clear()
                handle(StagesLost("killed", open_steps=steps))
                handle(StagesReady(step, 2, 40))
    assert not core.sequences
    return done


@pytest.mark.parametrize("case", CASES)
def test_replay_is_identical(case: str, tmp_path: Path) -> None:
    """Through the file, every action equal to the first time."""
    path = tmp_path / "journal.jsonl"
    done = live_run(case, path)
    again = scheduler(case)
    assert [again.on(event, now) for now, event, _ in read_checked(path)] == done


def test_a_full_disk_ends_the_journal_and_nothing_else() -> None:
    with Path("/dev/full").open("w", encoding="utf-8", buffering=1) as file:
        journal = Journal(file)
        with capture_logs() as logs:
            for now in range(3):
                journal.note(Tick(), now)
        assert [one["reason"] for one in logs] == ["No space left on device"]
        with suppress(OSError):
            file.close()


def test_a_broken_journal_is_named(tmp_path: Path) -> None:
    """With the line."""
    path = tmp_path / "journal.jsonl"
    path.write_text('{"now": 1.0, "event": "Tick"}\n{"now": 2.0, "event": "Surprise"}\n')
    with pytest.raises(ConfigError, match="line 2"):
        list(read_checked(path))


@pytest.mark.parametrize("settings", ["", ', "settings": 5', ', "settings": {"shape": {}}'])
def test_a_journal_without_its_settings_is_refused(settings: str, tmp_path: Path) -> None:
    file = tmp_path / "it.journal"
    file.write_text(f'{{"journal": {VERSION}{settings}}}\n')
    with pytest.raises(ConfigError, match="the journal's settings are not those of this version"):
        read_scheduler_spec(file)


def test_two_instances_do_not_write_one_file(tmp_path: Path) -> None:
    """Who comes second is refused, before it begins and then; what is there stays; a killed one's is free."""
    path = tmp_path / "all.jsonl"
    check_journal(path)
    assert not path.exists()
    with open_journal(path, "first") as file:
        file.write("here\n")
        for try_it in (lambda: check_journal(path), lambda: open_journal(path, "second")):
            with pytest.raises(ConfigError, match="another instance writes the journal"):
                try_it()
        assert path.read_text() == "here\n"
    check_journal(path)
    with open_journal(path, "second"):
        assert path.read_text() == ""
    with pytest.raises(ConfigError, match="cannot write"):
        check_journal(Path("/proc/journals"))
