"""Our scheduler in vLLM: its metrics, what it reads of requests, and which it leaves to vLLM's own."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from controller.engines.vllm_scheduler.expected import expected_of
from controller.engines.vllm_scheduler.metrics import Metrics, serve
from controller.engines.vllm_scheduler.mirror import Mirror
from controller.engines.vllm_scheduler.record import Record
from controller.engines.vllm_scheduler.unsteerable import of_request
from controller.runtime.scheduler_spec import SchedulerSpec
from controller.scheduler.actions import PhaseSwitched, Reason
from launcher.ports import choose_port
from tidepipe_common.errors import ConfigError
from tidepipe_common.types.model_shape import ModelShape
from tidepipe_common.types.plan import Phase

SHAPE = ModelShape("llama", 4, 64, 4, 4, 16, 128, 256, 512, (), True)


def test_a_scrape_says_steps_turns_and_differences() -> None:
    spec = SchedulerSpec("auto", SHAPE, (2, 2), "cpu", None, True, 16, 2, 64, {})
    mirror, record = Mirror(spec, 2, 32), Record(lambda line: None, "", 2)
    mirror.differences["a row was not scheduled"] += 2
    for waiting in (2, 3):
        reason = Reason("work arrived: a detail", {"waiting": waiting})
        record.turned(PhaseSwitched(Phase.IDLE, Phase.MIXED, reason), 1.0)
    record.step(1, "mixed", 40, 8, 1.0, 3.0, 0.5)
    record.count("an event")
    port = choose_port("127.0.0.1", 0)
    close = serve(Metrics(record, mirror, lambda: 96), "127.0.0.1", port)
    try:
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve(Metrics(record, mirror, lambda: 96), "127.0.0.1", port)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    finally:
        close()
    samples = [one for family in families for one in family.samples]
    found = {(one.name, *(one.labels[key] for key in sorted(one.labels))): one.value for one in samples}
    assert found["tidepipe_steps_total",] == 1
    assert found["tidepipe_tokens_total",] == 40
    assert found["tidepipe_step_tokens",] == 96
    assert found["tidepipe_phase_switches_total", "mixed", "idle", "work arrived"] == 2
    assert found["tidepipe_mirror_differences_total", "a row was not scheduled"] == 2
    assert found["tidepipe_events_total", "an event"] == 1


@dataclass
class Sampling:
    """What is asked of it."""

    seed: int | None


def test_a_seed_is_left_to_vllm_where_its_runner_cannot_compute_a_prompt_in_parts() -> None:
    def request(seed: int | None) -> SimpleNamespace:
        sampling = Sampling(seed)
        return SimpleNamespace(
            sampling_params=sampling,
            mm_features=[],
            prompt_token_ids=[1],
            prompt_embeds=None,
            resumable=False,
        )

    assert "seed" in of_request(request(0), "cpu")
    assert not of_request(request(None), "cpu")
    assert not of_request(request(7), "cuda")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (120, (120, 120)),
        ([80, 200.5], (80, 200.5)),
        ([80, 20], (80, 80)),
        *((wrong, None) for wrong in (-1, "many", True, [], [1, 2, 3], [1, float("nan")], 1e300)),
    ],
)
def test_lengths_that_requests_bring(given: object, found: tuple[float, float] | None) -> None:
    assert expected_of({"tidepipe_output_tokens": given}) == found
    assert expected_of(None) is None
