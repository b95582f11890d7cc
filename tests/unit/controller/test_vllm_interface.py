"""What our scheduler relies on in vLLM, by name; runs where vLLM is installed: an environment of its own."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

pytest.importorskip("vllm")


def test_versions() -> None:
    from controller.engines.vllm_scheduler.versions import check_version

    check_version()


def test_methods_that_we_override_or_call() -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.request_queue import create_request_queue
    from vllm.v1.core.sched.scheduler import Scheduler

    expected = {
        "schedule": ["throttle_prefills"],
        "update_from_output": ["scheduler_output", "model_runner_output"],
        "add_request": ["request"],
        "finish_requests": ["request_ids", "finished_status"],
        "reset_prefix_cache": ["reset_running_requests", "reset_connector"],
        "_update_after_schedule": ["scheduler_output"],
        "_update_request_with_output": ["request", "new_token_ids", "is_stale"],
        "_preempt_request": ["request", "timestamp", "drop_stale_output"],
        "_handle_blocked_waiting_request": ["request"],
        "shutdown": [],
    }
    for base in (Scheduler, AsyncScheduler):
        for name, parameters in expected.items():
            found = list(inspect.signature(getattr(base, name)).parameters)[1:]
            assert found == parameters, f"{base.__name__}.{name}"
    assert list(inspect.signature(create_request_queue).parameters) == ["policy"]


def test_readers_that_we_let_sleep() -> None:
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    assert list(inspect.signature(SpinCondition.wait).parameters) == ["self", "timeout_ms"]
    for used in ("self.last_read + self.busy_loop_s", "self.poller.poll", "self.local_notify_socket.recv"):
        assert used in inspect.getsource(SpinCondition.wait), used


def test_attributes_of_the_scheduler() -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    source = inspect.getsource(Scheduler.__init__)
    for name in (
        "running",
        "waiting",
        "kv_holding_waiting",
        "requests",
        "max_num_scheduled_tokens",
        "max_num_active_reqs",
        "prev_step_scheduled_req_ids",
        "num_waiting_for_streaming_input",
        "policy",
        "_pause_state",
        "current_step",
        "block_size",
        "kv_cache_manager",
        "kv_cache_config",
        "max_model_len",
    ):
        assert f"self.{name} " in source or f"self.{name}:" in source, f"Scheduler.{name}"
    schedule = inspect.getsource(Scheduler.schedule)
    assert "len(self.running) + self.num_waiting_for_streaming_input" in schedule, "the limit on active ones"
    assert "token_budget = self.max_num_scheduled_tokens" in schedule, "the lever of a step's size"


def test_fields_that_we_read() -> None:
    from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
    from vllm.v1.request import Request, RequestStatus

    for kind, names in {
        SchedulerOutput: {
            "scheduled_new_reqs",
            "scheduled_cached_reqs",
            "num_scheduled_tokens",
            "total_num_scheduled_tokens",
            "preempted_req_ids",
        },
        NewRequestData: {"req_id", "num_computed_tokens"},
        CachedRequestData: {"req_ids", "num_computed_tokens"},
    }.items():
        missing = names - {one.name for one in dataclasses.fields(kind)}
        assert not missing, f"{kind.__name__}: {missing}"
    source = inspect.getsource(Request.__init__)
    for name in (
        "request_id",
        "status",
        "max_tokens",
        "prompt_token_ids",
        "prompt_embeds",
        "mm_features",
        "cache_salt",
        "num_computed_tokens",
        "num_in_flight_tokens",
        "next_decode_eligible_step",
        "skip_reading_prefix_cache",
        "resumable",
        "output_token_ids",
        "sampling_params",
    ):
        assert f"self.{name} " in source or f"self.{name}:" in source, f"Request.{name}"
    assert hasattr(Request, "num_output_tokens") and RequestStatus.RUNNING


def test_how_we_know_that_nobody_sees_tokens_as_they_come() -> None:
    from vllm.entrypoints.common import offline
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    assert SamplingParams().output_kind != RequestOutputKind.FINAL_ONLY
    assert "output_kind = RequestOutputKind.FINAL_ONLY" in inspect.getsource(offline)


def test_how_layers_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.utils import get_pp_indices

    from controller.engines.vllm.engine_options import LAYERS

    monkeypatch.setenv(LAYERS, "16,14")
    assert [get_pp_indices(30, stage, 2) for stage in range(2)] == [(0, 16), (16, 30)]


def test_the_class_is_found_by_the_name_that_users_give() -> None:
    from vllm.utils.import_utils import resolve_obj_by_qualname

    assert resolve_obj_by_qualname("tidepipe.vllm.Scheduler").__name__ == "Scheduler"
