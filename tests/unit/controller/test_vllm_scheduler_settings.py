"""What users set for our scheduler in vLLM: the environment goes before JSON, and wrong values are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.engines.vllm_scheduler.record import Record, read_timeline
from controller.engines.vllm_scheduler.settings import read_settings
from controller.engines.vllm_scheduler.versions import check_version
from controller.scheduler.actions import PhaseSwitched, Reason
from tidepipe_common.errors import ConfigError
from tidepipe_common.types.plan import Phase


def test_environment_before_json() -> None:
    json = {"tidepipe": {"policy": "hybrid", "settings": "token_budget=128", "tpot_ms": 50}, "others": 1}
    settings = read_settings({"TIDEPIPE_VLLM_TPOT_MS": "80", "HOME": "/"}, json)
    assert (settings.policy, settings.tpot_ms, settings.ttft_ms) == ("hybrid", 80.0, 5000.0)
    assert settings.knobs == {"token_budget": 128}
    assert read_settings({"TIDEPIPE_VLLM_POLICY": "off"}, {}).policy == "off"


@pytest.mark.parametrize(
    ("environment", "additional", "said"),
    [
        ({"TIDEPIPE_VLLM_POLICY": "best"}, {}, "TIDEPIPE_VLLM_POLICY: unknown policy 'best'; known: auto"),
        ({"TIDEPIPE_VLLM_POLCY": "auto"}, {}, "there is no setting TIDEPIPE_VLLM_POLCY"),
        ({}, {"tidepipe": {"tpot": 1}}, "has no setting 'tpot'"),
        ({}, {"tidepipe": {"tpot_ms": -1}}, "a number of milliseconds above 0, got -1"),
        ({}, {"tidepipe": 3}, "must have an object behind"),
        ({"TIDEPIPE_VLLM_SETTINGS": "token_budget=1"}, {}, "no setting of policy 'auto'"),
        ({"TIDEPIPE_VLLM_HARDWARE": "abacus"}, {}, "TIDEPIPE_VLLM_HARDWARE: unknown hardware 'abacus'"),
        ({"TIDEPIPE_VLLM_TIMELINE": "/no/such/folder/t"}, {}, "there is no folder for"),
    ],
)
def test_wrong_values_are_named(environment: dict[str, str], additional: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(environment, additional)
    assert said in str(caught.value)


def test_other_versions_are_refused() -> None:
    check_version("0.32.1")
    with pytest.raises(ConfigError, match=r"0\.33\.0 is installed"):
        check_version("0.33.0")


def test_a_timeline_can_be_drawn(tmp_path: Path) -> None:
    path = tmp_path / "timeline.jsonl"
    record = Record(lambda line: None, str(path), 2)
    record.turned(PhaseSwitched(Phase.IDLE, Phase.MIXED, Reason("work arrived", {"waiting": 2})), 1.0)
    record.resized(128, "why", 1.0)
    record.step(1, "mixed", 40, 8, 1.0, 3.0, 0.5)
    record.close()
    timeline = read_timeline(path)
    assert [(s.stage, s.start_s, s.end_s) for s in timeline.spans] == [(0, 2.0, 2.5), (1, 2.5, 3.0)]
    assert timeline.turns[0].reason == "work arrived (waiting 2)"
