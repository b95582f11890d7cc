"""vLLM's scheduler with the brain inside it; only vLLM imports this.

vLLM stays the owner of blocks, tokens and ends. Before each of its calls it sees only those requests that the
brain's next step has, in that order, and as many tokens; then its own code schedules. So whatever vLLM does
for a request (grammars, log-probabilities, prefix cache, preemption) it does as without us.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.core.sched.scheduler import Scheduler as PlainScheduler
from vllm.v1.request import Request, RequestStatus

from controller.engines.vllm.engine_options import LAYERS, divided_layers
from controller.engines.vllm_scheduler.clock import StepClock
from controller.engines.vllm_scheduler.costs import better_layers, device_of, spec_of
from controller.engines.vllm_scheduler.expected import expected_of
from controller.engines.vllm_scheduler.lateness import load_of, put_late_last
from controller.engines.vllm_scheduler.metrics import Metrics, serve
from controller.engines.vllm_scheduler.mirror import Did, Held, Mirror, Wanted
from controller.engines.vllm_scheduler.record import Record
from controller.engines.vllm_scheduler.settings import Settings, read_settings
from controller.engines.vllm_scheduler.step_size import StepSize, Targets
from controller.engines.vllm_scheduler.unsteerable import of_engine, of_request
from controller.engines.vllm_scheduler.versions import check_version
from controller.engines.waiting import sleep_while_waiting
from controller.runtime.scheduler_spec import SchedulerSpec
from controller.scheduler.events import NewSequence
from controller.scheduler.policies import AutoPolicy
from tidepipe_common.errors import ConfigError
from tidepipe_common.prefix import root_key
from tidepipe_common.types.sampling import SamplingParams

logger = init_logger("vllm.tidepipe")

LOOK_EVERY_S = 0.01
"""Between two looks at how much there is to do."""
REBUILD_AGAIN_AFTER = 64
"""Calls, where the brain's state could not be made equal to vLLM's: both count shared blocks."""


@dataclass(slots=True)
class _Flight:
    """A step that vLLM has not told the result of. wanted: None if it was vLLM's own choice."""

    output: SchedulerOutput
    wanted: Wanted | None
    went: float
    tokens: int
    rows: tuple[str, ...] = ()
    decode_rows: int = 0


@dataclass(slots=True)
class _Steering:
    """What there is only while the engine is one that can be steered. watched: requests whose tokens are sent
    as they come."""

    spec: SchedulerSpec
    mirror: Mirror
    clock: StepClock
    size: StepSize | None
    stale: bool = False
    calls_until_rebuild: int = 0
    new: list[Request] = field(default_factory=list)
    blocked: list[Request] = field(default_factory=list)
    foreign: dict[str, str] = field(default_factory=dict)
    watched: set[str] = field(default_factory=set)
    next: Wanted | None = None
    looked: float = -1.0


def _is_watched(request: Request) -> bool:
    """Tokens are sent as they come, not the whole answer at its end."""
    sampling = request.sampling_params
    return sampling is not None and sampling.output_kind != RequestOutputKind.FINAL_ONLY


class Scheduler(AsyncScheduler):  # type: ignore[misc]  # not installed where types are checked
    """See the module."""

    running: list[Request]
    waiting: Any
    max_num_active_reqs: int
    max_num_scheduled_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._steering: _Steering | None = None
        self._flights: dict[int, _Flight] = {}
        self._under_way = 0
        self._step_tokens = 0
        self._close_metrics: Callable[[], None] = lambda: None
        self._full_budget = self.max_num_scheduled_tokens
        self._device = str(self.vllm_config.device_config.device_type)
        try:
            check_version()
            settings = read_settings(os.environ, self.vllm_config.additional_config)
            stages = self.parallel_config.pipeline_parallel_size
            self._record = Record(logger.info, settings.timeline, stages)
            self._begin(settings)
        except ConfigError as error:
            if multiprocessing.parent_process() is None:
                raise
            # The process that waits for this one says the rest.
            logger.error("tidepipe: %s", error)
            raise SystemExit(2) from error

    def _begin(self, settings: Settings) -> None:
        why = "policy off" if settings.policy == "off" else of_engine(self.vllm_config, self.kv_cache_config)
        if why:
            logger.warning("tidepipe: vLLM's own scheduler decides: %s", why)
            return
        if self._device == "cpu":
            sleep_while_waiting()
        config = self.vllm_config
        name = "cpu" if self._device == "cpu" else current_platform.get_device_name()
        device = device_of(settings, self._device, name)
        split = tuple(end - begin for begin, end in divided_layers(config))
        stages = len(split)
        spec = spec_of(settings, config, split, device, self._full_budget, self.block_size)
        blocks = self.kv_cache_manager.block_pool.num_gpu_blocks - 1
        mirror = Mirror(spec, stages, blocks)
        known = spec.costs()
        assert known is not None, "the device's data sheet is"
        policy = mirror.scheduler.policy
        sized = isinstance(policy, AutoPolicy) and not spec.knobs.get("fixed_size")
        targets = Targets(settings.ttft_ms / 1000, settings.tpot_ms / 1000, self._full_budget)
        size = StepSize(known, targets, spec.microbatches) if sized else None
        clock = StepClock(stages)
        self._steering = _Steering(spec, mirror, clock, size)
        self._resize(self._steering, time.monotonic())
        if settings.metrics_port:
            metrics = Metrics(
                self._record, mirror, lambda: self._step_tokens or mirror.scheduler.config.prefill_tokens
            )
            self._close_metrics = serve(metrics, settings.metrics_host, settings.metrics_port)
        logger.info(
            "tidepipe: policy %s on %s (prices begin with %s), %d micro-batches, %d blocks of %d tokens",
            policy.name,
            name,
            device,
            spec.microbatches,
            blocks,
            self.block_size,
        )
        if better := better_layers(config):
            logger.info(
                "tidepipe: the last stage has the model's head as well; with %s=%s in the environment all "
                "stages take about equally long",
                LAYERS,
                better,
            )

    # -- what vLLM tells ----------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        known = request.request_id in self.requests
        super().add_request(request)
        if self._steering is None:
            return
        if self._steering.size is not None and _is_watched(request):
            self._steering.watched.add(request.request_id)
        if not known:
            self._steering.new.append(request)

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        ended: list[Request] = super().finish_requests(request_ids, finished_status)
        if (steering := self._steering) is not None:
            now = time.monotonic()
            for request in ended:
                steering.foreign.pop(request.request_id, None)
                steering.mirror.cancelled(request.request_id, now)
        return ended

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        done = super().reset_prefix_cache(*args, **kwargs)
        if (steering := self._steering) is not None:
            steering.mirror.prefixes_cleared(time.monotonic())
            # It may have preempted all.
            steering.stale = True
        return bool(done)

    def shutdown(self) -> None:
        self._record.close()
        self._close_metrics()
        super().shutdown()

    # -- a step -------------------------------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        steering = self._steering
        if steering is None:
            return super().schedule(throttle_prefills)
        now = time.monotonic()
        self._hear(steering, now)
        if why := self._why_not(steering, throttle_prefills):
            self._record.count(f"vLLM's own scheduler decides: {why}")
            return self._unsteered(steering, throttle_prefills)
        if steering.stale and not self._rebuilt(steering, now):
            if self._under_way and not steering.calls_until_rebuild:
                return self._nothing()
            return self._unsteered(steering, throttle_prefills)
        self._resize(steering, now)
        wanted, steering.next = steering.next or steering.mirror.next(now), None
        self._tell_turns(steering, now)
        if wanted is None:
            if self._under_way:
                return self._nothing()
            output = self._unsteered(steering, throttle_prefills)
            if output.total_num_scheduled_tokens:
                self._record.count("the brain had no step although requests are there")
            return output
        if self._too_early(wanted):
            steering.next = wanted
            return self._nothing()
        return self._enforce(steering, wanted)

    def _hear(self, steering: _Steering, now: float) -> None:
        """Requests that came since the last step, all at once, so that they can share their first one."""
        if not steering.new and not steering.blocked:
            return
        candidates, steering.new = steering.blocked + steering.new, []
        steering.blocked = []
        ready = []
        for request in candidates:
            if self.requests.get(request.request_id) is not request or request.is_finished():
                continue
            if why := of_request(request, self._device):
                steering.foreign[request.request_id] = why
            elif self._handle_blocked_waiting_request(request):
                ready.append(request)
            else:
                steering.blocked.append(request)
        if ready and not steering.stale:
            for refused in steering.mirror.arrived([self._sequence(one) for one in ready], now):
                steering.foreign[refused.sequence_id] = refused.detail
            self._predict(steering, ready, now)

    def _predict(self, steering: _Steering, requests: Iterable[Request], now: float) -> None:
        for request in requests:
            if expected := expected_of(request.sampling_params and request.sampling_params.extra_args):
                steering.mirror.predicted(request.request_id, expected.p50, expected.p90, now)

    def _sequence(self, request: Request) -> NewSequence:
        sampling = request.sampling_params
        assert sampling is not None and request.prompt_token_ids is not None
        # Those that vLLM computes in full find nothing with us either.
        alone = request.skip_reading_prefix_cache
        root = "" if alone else root_key("", request.cache_salt or "").hex()
        prompt = tuple(request.prompt_token_ids)
        # One more than vLLM allows: it ends them, not we.
        most = min(request.max_tokens, self.max_model_len - len(prompt)) + 1
        return NewSequence(
            request.request_id,
            prompt,
            SamplingParams(max_tokens=max(1, most)),
            tuple(request.output_token_ids),
            prefix_root=root,
        )

    def _why_not(self, steering: _Steering, throttle_prefills: bool) -> str:
        if steering.foreign:
            return next(iter(steering.foreign.values()))
        if self._pause_state != PauseState.UNPAUSED:
            return "the engine is paused"
        if throttle_prefills:
            return "prompts are held back"
        if self.kv_holding_waiting or self.num_waiting_for_streaming_input:
            return "requests wait that hold blocks"
        return ""

    def _unsteered(self, steering: _Steering, throttle_prefills: bool) -> SchedulerOutput:
        steering.calls_until_rebuild = max(0, steering.calls_until_rebuild - 1)
        went = time.monotonic()
        output = super().schedule(throttle_prefills)
        if output.total_num_scheduled_tokens or output.preempted_req_ids:
            steering.stale = True
            steering.next = None
        self._fly(_Flight(output, None, went, output.total_num_scheduled_tokens))
        return output

    def _nothing(self) -> SchedulerOutput:
        """An empty step: vLLM then waits for the oldest one that is under way."""
        output = self._seeing([], [], self._full_budget)
        self._fly(_Flight(output, None, time.monotonic(), 0))
        return output

    def _too_early(self, wanted: Wanted) -> bool:
        """vLLM's newer runner wants so many steps between two of a request."""
        step = self.current_step + 1
        requests = self.requests
        return any(step < requests[row.sequence_id].next_decode_eligible_step for row in wanted.rows)

    def _enforce(self, steering: _Steering, wanted: Wanted) -> SchedulerOutput:
        for name in wanted.preempt:
            self._give_up(name)
        chosen = [self.requests[row.sequence_id] for row in wanted.rows]
        running = [request for request in chosen if request.status == RequestStatus.RUNNING]
        waiting = [request for request in chosen if request.status != RequestStatus.RUNNING]
        went = time.monotonic()
        output = self._seeing(running, waiting, min(wanted.tokens, self._full_budget))
        preempted = set(output.preempted_req_ids or ()) - set(wanted.preempt)
        did = {one.req_id: Did(one.num_computed_tokens, 0) for one in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        did |= {
            name: Did(began, 0)
            for name, began in zip(cached.req_ids, cached.num_computed_tokens, strict=True)
        }
        did = {name: Did(did[name].began, tokens) for name, tokens in output.num_scheduled_tokens.items()}
        if not steering.mirror.happened(wanted.step_id, did, preempted):
            self._disagree(steering)
        decode_rows = sum(row.decode for row in wanted.rows)
        tokens = output.total_num_scheduled_tokens
        self._fly(_Flight(output, wanted, went, tokens, tuple(did), decode_rows))
        return output

    def _give_up(self, name: str) -> None:
        """Preempt a request that has nothing under way: the brain wants its blocks."""
        request = self.requests.get(name)
        if request is None or request.status != RequestStatus.RUNNING or request.num_in_flight_tokens:
            return
        self.running = [one for one in self.running if one is not request]
        self._preempt_request(request, time.monotonic())
        self.prev_step_scheduled_req_ids.discard(name)
        self._record.count("preemptions by the brain")

    def _seeing(self, running: list[Request], waiting: list[Request], tokens: int) -> SchedulerOutput:
        """vLLM's own scheduling of these alone; all others are put back after it."""
        all_running, all_waiting = self.running, self.waiting
        active = self.max_num_active_reqs
        self.max_num_active_reqs -= len(all_running) - len(running)
        self.max_num_scheduled_tokens = tokens
        if waiting:
            all_waiting.remove_requests(waiting)
        self.running, self.waiting = list(running), create_request_queue(self.policy)
        for request in waiting:
            self.waiting.add_request(request)
        try:
            return super().schedule()
        finally:
            seen = set(all_running)
            admitted = [request for request in self.running if request not in seen]
            still = [request for request in all_running if request.status == RequestStatus.RUNNING]
            left = list(self.waiting)
            self.running, self.waiting = still + admitted, all_waiting
            for request in reversed(left):
                all_waiting.prepend_request(request)
            self.max_num_active_reqs = active
            self.max_num_scheduled_tokens = self._full_budget

    # -- results ------------------------------------------------------------------------------------

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: Any) -> Any:
        steering = self._steering
        flight = self._flights.pop(id(scheduler_output), None)
        if steering is None or flight is None:
            return super().update_from_output(scheduler_output, model_runner_output)
        had = {
            name: request.num_output_tokens
            for name in flight.rows
            if (request := self.requests.get(name)) is not None
        }
        result = super().update_from_output(scheduler_output, model_runner_output)
        now = time.monotonic()
        if flight.tokens:
            self._under_way -= 1
            self._landed(steering, flight, had, now)
        self._tell_turns(steering, now)
        self._record.maybe_summary(now, lambda: self._more(steering))
        return result

    def _landed(self, steering: _Steering, flight: _Flight, had: dict[str, int], now: float) -> None:
        seconds = steering.clock.returned(flight.went, now)
        if steering.size is not None and flight.wanted is not None:
            rows = flight.decode_rows
            steering.size.returned(rows, flight.tokens - rows, seconds, now - flight.went)
        if flight.wanted is None:
            for name in [name for name in steering.foreign if name not in self.requests]:
                del steering.foreign[name]
            self._record.step(0, "mixed", flight.tokens, 0, flight.went, now, seconds)
            return
        # The result is what the next step is planned at.
        self._resize(steering, now)
        wanted = flight.wanted
        tokens, ended = {}, set()
        for name in flight.rows:
            request = self.requests.get(name)
            if request is None or request.is_finished():
                ended.add(name)
            elif request.num_output_tokens > had.get(name, 0):
                tokens[name] = request.output_token_ids[-1]
        if not steering.stale and not steering.mirror.done(wanted.step_id, tokens, ended, seconds, now):
            self._disagree(steering)
        phase, rows = wanted.phase, flight.decode_rows
        self._record.step(wanted.step_id, phase, flight.tokens, rows, flight.went, now, seconds)

    def _fly(self, flight: _Flight) -> None:
        self._flights[id(flight.output)] = flight
        self._under_way += flight.tokens > 0

    # -- agreement ----------------------------------------------------------------------------------

    def _disagree(self, steering: _Steering) -> None:
        self._record.count("the brain's state is made anew from vLLM's")
        steering.stale = True

    def _rebuilt(self, steering: _Steering, now: float) -> bool:
        """The brain's state is vLLM's again; False: not yet."""
        if self._under_way or steering.calls_until_rebuild:
            return False
        blocked = {request.request_id for request in steering.blocked}
        steering.next = None
        everyone = [*self.running, *self.waiting]
        known = [self._sequence(one) for one in everyone if one.request_id not in blocked]
        held = [
            Held(one.request_id, tuple(one.output_token_ids), one.num_computed_tokens) for one in self.running
        ]
        refused = steering.mirror.rebuild(held, known, now)
        if refused is None:
            steering.calls_until_rebuild = REBUILD_AGAIN_AFTER
            self._record.count("vLLM holds more than the brain's blocks can")
            return False
        for one in refused:
            steering.foreign[one.sequence_id] = one.detail
        steering.stale = False
        self._predict(steering, everyone, now)
        return not refused

    def _resize(self, steering: _Steering, now: float) -> None:
        """Look at who can be in time: that is whose turn it is, and how large steps are."""
        if steering.size is None or now - steering.looked < LOOK_EVERY_S:
            return
        steering.looked = now
        scheduler, targets = steering.mirror.scheduler, steering.size.targets
        put_late_last(scheduler.waiting, targets.ttft_s, now)
        steering.watched &= self.requests.keys()
        # An empty engine says nothing of who comes next.
        watched = bool(steering.watched) or not self.requests
        load = load_of(scheduler, targets.ttft_s, targets.tpot_s, now, watched=watched)
        tokens = steering.size.choose(load)
        assert isinstance(scheduler.policy, AutoPolicy)
        if tokens != self._step_tokens:
            scheduler.policy.resize(tokens)
            self._record.resized(tokens, steering.size.why, now)
            self._step_tokens = tokens

    def _tell_turns(self, steering: _Steering, now: float) -> None:
        for turn in steering.mirror.turns:
            self._record.turned(turn, now)
        steering.mirror.turns.clear()

    def _more(self, steering: _Steering) -> str:
        scheduler, differences = steering.mirror.scheduler, steering.mirror.differences
        parts = [f"running {scheduler.running}", f"waiting {len(scheduler.waiting)}"]
        parts.append(f"found tokens {scheduler.stats.reuse.found_tokens}")
        parts += [f"{what} {count}" for what, count in differences.items()]
        return "; " + ", ".join(parts)

    # -- without asynchronous scheduling, as the plain one ------------------------------------------

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        base = AsyncScheduler if self.scheduler_config.async_scheduling else PlainScheduler
        base._update_after_schedule(self, scheduler_output)

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        base = AsyncScheduler if self.scheduler_config.async_scheduling else PlainScheduler
        updated: tuple[list[int], bool] = base._update_request_with_output(
            self, request, new_token_ids, is_stale
        )
        return updated
