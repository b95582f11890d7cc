"""All that a live scheduler is made of, in a form that a journal can keep: it can be made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from common.errors import ConfigError
from common.latency.correction import CorrectedCost, LearningCost
from common.latency.hardware import hardware
from common.latency.learned import LearnedCost
from common.latency.model import LatencyModel, Parallelism
from common.latency.profile import Profile, cost_model
from common.latency.profile_file import profile_fields, profile_from_fields
from common.model_shape import ModelShape
from controller.core.admission import AdmissionRules
from controller.core.policies import Policy
from controller.core.policies.catalog import make_policy, victims_for
from controller.core.scheduler import Scheduler, SchedulerConfig

CPU_DISPATCH_S = 0.0015
"""From a step's result to the next plan, where the stages' cores are those of the controller as well."""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Settings of a live instance.

    split: layers of each stage. device: `hardware`'s name for it, for its links and what no profile says.
    modelled: plan with the device's data sheet if there is no profile; else costs are learned from nothing.
    microbatches: so many, always; 0 leaves it to the policy.
    """

    policy: str
    shape: ModelShape
    split: tuple[int, ...]
    device: str
    profile: Profile | None
    modelled: bool
    block_size: int
    prefill_tokens: int
    microbatches: int
    max_sequences: int
    max_running: int
    reserve: float

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

        # A step of few rows takes no longer on a CPU than its results' way through here.
        dispatch_s = CPU_DISPATCH_S if self.device == "cpu" and not self.microbatches else 0.0

        def policy(name: str) -> Policy | None:
            # Slack is counted in step times, so padg takes learned ones where none were given; `auto`
            # compares step sizes, of which a few timed steps say too little.
            return make_policy(name, cost if name == "padg" else profiled, dispatch_s)

        scheduler = Scheduler(
            SchedulerConfig(
                context_length=self.shape.context_length,
                eos_token_ids=self.shape.eos_token_ids if eos_token_ids is None else eos_token_ids,
                block_size=self.block_size,
                prefill_tokens=self.prefill_tokens,
                microbatches=self.microbatches,
                max_sequences=self.max_sequences,
                admission=AdmissionRules(max_running=self.max_running, reserve=self.reserve),
                victims=victims_for(self.policy),
            ),
            policy(self.policy),
            cost,
            policy,
        )
        return scheduler, cost

    def under(self, policy: str) -> Blueprint:
        """The same instance under another policy."""
        return replace(self, policy=policy)

    def fields(self) -> dict[str, Any]:
        """As JSON values."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in ("shape", "profile")}
        profile = None if self.profile is None else profile_fields(self.profile)
        return {**plain, "shape": asdict(self.shape), "profile": profile}


def blueprint_from(fields: Mapping[str, Any]) -> Blueprint:
    """The reverse of `Blueprint.fields`; ConfigError if it is none."""
    try:
        values = dict(fields)
        shape = dict(values.pop("shape"))
        shape["eos_token_ids"] = tuple(shape["eos_token_ids"])
        profile = values.pop("profile")
        values["split"] = tuple(values["split"])
        known = None if profile is None else profile_from_fields(profile)
        return Blueprint(shape=ModelShape(**shape), profile=known, **values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"the journal's settings are not those of this version ({error!r})") from error
