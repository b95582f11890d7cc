"""All that a live scheduler is made of, in a form that a journal can keep: it can be made again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from controller.scheduler.hand_over import HandOver
from controller.scheduler.policies import Policy
from controller.scheduler.policies.catalog import BY_STEP_TIMES, Knobs, Setup, known_knobs, make_setup
from controller.scheduler.scheduler import Scheduler, SchedulerConfig
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.correction import CorrectedCost, LearningCost
from tidepipe_common.latency.dispatch import DISPATCH_S
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.learned import LearnedCost
from tidepipe_common.latency.model import LatencyModel, Parallelism, StepCost
from tidepipe_common.latency.profile import Profile, cost_model
from tidepipe_common.latency.profile_file import profile_fields, profile_from_fields
from tidepipe_common.latency.transfer import TransferCost, TransferCosts
from tidepipe_common.types.model_shape import ModelShape


@dataclass(frozen=True, slots=True)
class SchedulerSpec:
    """Settings of a live instance.

    split: layers of each stage. device: `hardware`'s name for it, for its links and what no profile says.
    modelled: plan with the device's data sheet if there is no profile; else costs are learned from nothing.
    microbatches: so many, always; 0 leaves it to the policy. max_sequences: 0 as well.
    histories: the body must be told all tokens of a sequence that begins. signals: the length signals of
    prompts are wanted.
    kv_transfer: see HandOver.
    dispatch_s: what a step costs beside computing, until that was measured.
    knobs: the policy's settings that were chosen; all others are its defaults (catalog.py).
    """

    policy: str
    shape: ModelShape
    split: tuple[int, ...]
    device: str
    profile: Profile | None
    modelled: bool
    block_size: int
    microbatches: int
    max_sequences: int
    knobs: Knobs
    prefix_caching: bool = True
    histories: bool = False
    signals: bool = False
    kv_transfer: str = "auto"
    dispatch_s: float = DISPATCH_S

    def costs(self) -> LatencyModel | None:
        """What steps take, as far as it was known beforehand."""
        if self.profile is None and not self.modelled:
            return None
        return cost_model(self.shape, hardware(self.device), self.profile, Parallelism(len(self.split)))

    def build(self, eos_token_ids: tuple[int, ...] | None = None) -> tuple[Scheduler, LearningCost]:
        """A fresh scheduler, and the costs that it learns from what stages report.

        eos_token_ids: tokens that end an output; None for the model's.
        """
        known = self.costs()
        profiled = CorrectedCost(known) if known is not None else None
        cost: LearningCost = profiled or LearnedCost()

        def chosen(name: str) -> tuple[Policy, SchedulerConfig]:
            setup = self.setup(name, cost if name in BY_STEP_TIMES else profiled)
            config = setup.config(
                self.shape.context_length,
                self.shape.eos_token_ids if eos_token_ids is None else eos_token_ids,
                block_size=self.block_size,
                microbatches=self.microbatches,
                max_sequences=self.max_sequences,
                prefix_caching=self.prefix_caching,
            )
            own = replace(config, histories=self.histories, signals=self.signals, dispatch_s=self.dispatch_s)
            return setup.policy, own

        policy, config = chosen(self.policy)
        transfers = TransferCosts(TransferCost(hardware(self.device).link_gb_s * 1e9))
        return Scheduler(config, policy, cost, chosen, HandOver(cost, transfers, self.kv_transfer)), cost

    def setup(self, name: str, cost: StepCost | None) -> Setup:
        """A policy on this instance; of what was chosen for another one what it knows as well."""
        knobs = self.knobs if name == self.policy else known_knobs(name, self.knobs)
        return make_setup(name, knobs, cost, self.device, fixed=self.microbatches > 0)

    def under(self, policy: str) -> SchedulerSpec:
        """The same instance under another policy."""
        return replace(self, policy=policy, knobs=known_knobs(policy, self.knobs))

    def fields(self) -> dict[str, Any]:
        """As JSON values."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in ("shape", "profile")}
        profile = None if self.profile is None else profile_fields(self.profile)
        return {**plain, "knobs": dict(self.knobs), "shape": asdict(self.shape), "profile": profile}


def scheduler_spec_from(fields: Any) -> SchedulerSpec:
    """The reverse of `SchedulerSpec.fields`; ConfigError if it is none."""
    try:
        values = dict(fields)
        shape = dict(values.pop("shape"))
        shape["eos_token_ids"] = tuple(shape["eos_token_ids"])
        profile = values.pop("profile")
        values["split"] = tuple(values["split"])
        known = None if profile is None else profile_from_fields(profile)
        return SchedulerSpec(shape=ModelShape(**shape), profile=known, **values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"the journal's settings are not those of this version ({error!r})") from error
