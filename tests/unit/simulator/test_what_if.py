"""A journal alone is enough: to replay a run decision by decision, and to run it under another policy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controller.runtime.journal import Journal, open_journal, read_scheduler_spec
from controller.runtime.scheduler_spec import SchedulerSpec, scheduler_spec_from
from controller.scheduler.actions import Dispatch
from controller.scheduler.events import (
    Event,
    LengthPredicted,
    NewSequence,
    PolicyChosen,
    SequencesArrived,
    StagesReady,
    StepDone,
)
from simulator.simulated_model import Transcript
from simulator.what_if import replay_journal, what_if
from tidepipe.cli.main import app
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.profile import Profile, ProfileTerms
from tidepipe_common.latency.shapes import SHAPES
from tidepipe_common.latency.work import work_of
from tidepipe_common.prefix import root_key
from tidepipe_common.types.plan import SampledTokens
from tidepipe_common.types.sampling import SamplingParams
from workloads.mixes import SimRequest

TERMS = ProfileTerms(((1, 40.0), (256, 90.0)), ((1, 1.0), (64, 4.0)), 0.5, 0.01, 0.5, 0.01)
PROFILE = Profile(((1, 42.0), (256, 100.0)), TERMS)
BLUEPRINT = SchedulerSpec(
    policy="auto",
    shape=SHAPES["llama2-13b"],
    split=(21, 19),
    device="cpu",
    profile=PROFILE,
    modelled=False,
    block_size=16,
    microbatches=0,
    max_sequences=100,
    knobs={"prefill_tokens": 128, "max_running": 64, "reserve": 0.05},
)


def live_run(
    folder: Path,
    spec: SchedulerSpec = BLUEPRINT,
    *,
    change: bool = False,
    slower: float = 1.0,
    root: str = "",
) -> Path:
    """Stages that take what the profile says, or `slower` times that; written as it goes.

    root: under which the prompts, each of which is the beginning of the next one, share their blocks.
    """
    scheduler, _ = spec.build()
    cost = spec.costs()
    with open_journal(folder, "instance-0") as file:
        path = Path(file.name)
        journal = Journal(file)
        journal.begin(spec)
        plans: list[tuple[float, tuple[float, ...], Dispatch]] = []
        now = 5.0
        free = [now] * len(spec.split)

        def handle(event: Event) -> None:
            journal.note(event, now)
            actions = scheduler.on(event, now)
            journal.did(actions)
            for action in actions:
                if isinstance(action, Dispatch):
                    at, work = now, work_of(action.plan)
                    times = []
                    for stage, layers in enumerate(spec.split):
                        last = stage == len(free) - 1
                        spent = slower * cost.stage_s(work, layers, last=last) if cost else 0.05
                        at = free[stage] = max(at, free[stage]) + spent
                        times.append(spent)
                    plans.append((at, tuple(times), action))

        handle(StagesReady(1, len(spec.split), 200))
        sampling = [SamplingParams(max_tokens=10 + 3 * i, ignore_eos=True, seed=i) for i in range(24)]
        prompts = [(7,) * (20 + 11 * i) for i in range(24)]
        handle(
            SequencesArrived(
                tuple(NewSequence(f"s{i}", prompts[i], sampling[i], prefix_root=root) for i in range(24))
            )
        )
        for i in range(24):
            handle(LengthPredicted(f"s{i}", 10.0 + 3 * i, 15.0 + 3 * i))
        while plans:
            now, times, dispatch = plans.pop(0)
            plan = dispatch.plan
            handle(StepDone(plan.step_id, SampledTokens((7,) * plan.samples), times))
            if change and plan.step_id == 20:
                handle(PolicyChosen("hybrid"))
    assert not scheduler.sequences
    return path


def test_a_journal_keeps_its_settings(tmp_path: Path) -> None:
    """Through JSON, and a restarted controller does not write over the journal of the one before."""
    assert scheduler_spec_from(json.loads(json.dumps(BLUEPRINT.fields()))) == BLUEPRINT
    first, second = live_run(tmp_path / "j"), live_run(tmp_path / "j")
    assert first != second
    assert read_scheduler_spec(first) == read_scheduler_spec(second) == BLUEPRINT
    (tmp_path / "old.jsonl").write_text('{"now": 1.0, "event": "Tick"}\n')
    with pytest.raises(ConfigError, match="does not begin"):
        read_scheduler_spec(tmp_path / "old.jsonl")


@pytest.mark.parametrize("policy", ["auto", "td-pipe", "separate", "hybrid", "vllm-capped", "gllm"])
def test_replay_and_virtual_time_agree_with_the_live_run(policy: str, tmp_path: Path) -> None:
    """Every decision the same; the same policy takes as long in virtual time, but for the transfers."""
    path = live_run(tmp_path, BLUEPRINT.under(policy))
    live = replay_journal(path)
    assert (live.differing, live.epochs, len(live.requests)) == (0, 1, 24)
    assert live.output_tokens == sum(10 + 3 * i for i in range(24))
    assert what_if(live, live.spec).makespan_s == pytest.approx(live.makespan_s, rel=0.1)


def test_a_machine_slower_than_its_profile(tmp_path: Path) -> None:
    """What if takes the pace of that run, for any policy."""
    quick, slow = (
        replay_journal(live_run(tmp_path / name, slower=by)) for name, by in (("q", 1.0), ("s", 1.5))
    )
    assert list(slow.pace.values()) == pytest.approx([1.5] * 2)
    assert what_if(slow, slow.spec).makespan_s == pytest.approx(slow.makespan_s, rel=0.1)
    other = BLUEPRINT.under("hybrid")
    assert what_if(slow, other).makespan_s > 1.3 * what_if(quick, other).makespan_s
    assert what_if(slow, other, paced=False).makespan_s < 1.1 * what_if(quick, other).makespan_s


def test_what_if_nothing_were_found_again(tmp_path: Path) -> None:
    """A journal has what reuse needs; old ones, which say nothing of it, are read as before."""
    path = live_run(tmp_path, root=root_key("t").hex())
    live = replay_journal(path)
    assert (live.differing, live.spec.prefix_caching) == (0, True)
    # Of 20, 31, 42, .. equal tokens all full blocks but those of the longest, and never the last token.
    assert live.cached_tokens > 0.8 * sum(one.prompt_tokens for one in live.requests)
    same, without = (what_if(live, replace(live.spec, prefix_caching=reuse)) for reuse in (True, False))
    assert same.cached_tokens == pytest.approx(live.cached_tokens, rel=0.02)
    assert same.makespan_s == pytest.approx(live.makespan_s, rel=0.1)
    assert without.cached_tokens == 0
    assert without.makespan_s > 1.1 * same.makespan_s
    path = live_run(tmp_path / "old")
    text = path.read_text().replace(',"prefix_caching":true', "").replace(',"prefix_root":""', "")
    assert "prefix" not in text
    path.write_text(text)
    old = replay_journal(path)
    assert (old.differing, old.cached_tokens, old.spec) == (0, 0, live.spec)


def test_a_conversation_finds_the_answer_that_was_given(tmp_path: Path) -> None:
    """In virtual time a recorded answer has its tokens, and so the next turn finds them."""
    first = Transcript((5,) * 40, tuple(range(100, 164)), root_key("").hex())
    second = Transcript((*first.prompt, *first.output, 9), (0, 1), first.root)
    run = replay_journal(live_run(tmp_path))
    requests = (SimRequest(40, 64), SimRequest(105, 2, arrival_s=60.0))
    asked = replace(run, requests=requests, transcripts=(first, second), predictions=(None, None))
    # The answer's last token was never computed.
    assert what_if(asked, run.spec).cached_tokens == (40 + 63) // 16 * 16


def test_another_policy_in_the_middle_is_replayed(tmp_path: Path) -> None:
    """It is an event like any other."""
    assert replay_journal(live_run(tmp_path, change=True)).differing == 0


def test_the_command(tmp_path: Path) -> None:
    """What if, by name; a decision that was another one is found; without costs there is no what if."""
    path = live_run(tmp_path)
    ask = ["sim", "journal", str(path), "--policy", "hybrid,td-pipe", "--json"]
    done = CliRunner().invoke(app, ask)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["live"]["differing"] == 0
    assert [one["policy"] for one in report["what_if"]] == ["hybrid", "td-pipe"]
    assert all(one["makespan_s"] > 0 for one in report["what_if"])
    text = path.read_text()
    path.write_text(text.replace('"split":[21,19]', '"split":[20,20]').replace('{"did":', '{"did":1'))
    assert CliRunner().invoke(app, ["sim", "journal", str(path)]).exit_code == 1
    unknown = live_run(tmp_path / "u", replace(BLUEPRINT, profile=None))
    replayed = CliRunner().invoke(app, ["sim", "journal", str(unknown)])
    assert replayed.exit_code == 0
    assert "give --profile" in replayed.output
