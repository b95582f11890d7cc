"""The part of AdminService that regroups, scales, changes policies and clears caches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from router.instances.handoff import InstanceHandoff
from router.instances.link import InstanceLink
from router.instances.registry import InstanceRegistry
from router.models.model import ServedModel
from router.models.models import ServedModels
from router.scheduler.events import MergeMacros, MoveInstance, SetPolicy, SplitMacro
from router.scheduler.view import InstanceView
from tidepipe.v1 import admin_pb2 as pb
from tidepipe.v1 import admin_pb2_grpc as pb_grpc
from tidepipe_common.codec.plan import phase_to_wire
from tidepipe_common.errors import ConfigError, InvalidRequestError, NotFoundError, TidePipeError

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

POLICY_TIMEOUT_S = 3.0
CLEAR_TIMEOUT_S = 5.0
DEFAULT_LEAST, DEFAULT_MOST = 1, 64


@dataclass(frozen=True, slots=True)
class Grouping:
    """What the servicer acts on."""

    registry: InstanceRegistry
    models: ServedModels
    handoff: InstanceHandoff
    clock: Callable[[], float]


class GroupsServicer(pb_grpc.AdminServiceServicer):
    """Operators' hands on macro instances. Each answer shows how things stand then."""

    def __init__(self, grouping: Grouping) -> None:
        self._grouping = grouping

    async def GetGroups(self, request: pb.GetGroupsRequest, context: Context) -> pb.GetGroupsResponse:  # noqa: N802
        """How instances are grouped."""
        return self._groups()

    async def SplitMacroInstance(  # noqa: N802
        self, request: pb.SplitMacroInstanceRequest, context: Context
    ) -> pb.SplitMacroInstanceResponse:
        """One becomes two."""
        self._home(request.macro_id).dispatcher.handle(SplitMacro(request.macro_id, request.count))
        return pb.SplitMacroInstanceResponse(groups=self._groups())

    async def MergeMacroInstances(  # noqa: N802
        self, request: pb.MergeMacroInstancesRequest, context: Context
    ) -> pb.MergeMacroInstancesResponse:
        """Two become one."""
        home, other = self._home(request.into), self._home(request.other)
        if home is not other:
            raise ConfigError(
                f"{request.into} serves {home.name} and {request.other} serves {other.name}: "
                "a macro instance has instances of one model"
            )
        home.dispatcher.handle(MergeMacros(request.into, request.other))
        return pb.MergeMacroInstancesResponse(groups=self._groups())

    async def MoveInstance(  # noqa: N802
        self, request: pb.MoveInstanceRequest, context: Context
    ) -> pb.MoveInstanceResponse:
        """Pass an instance on."""
        grouping = self._grouping
        link = grouping.registry.link(request.instance_id)
        unfinished = 0
        match request.WhichOneof("target"):
            case "macro_id":
                if (target := self._home(request.macro_id)) is not link.model:
                    raise ConfigError(
                        f"{request.instance_id} serves {link.model.name} and {request.macro_id} "
                        f"{target.name}: a macro instance has instances of one model"
                    )
                target.dispatcher.handle(MoveInstance(request.instance_id, request.macro_id))
            case "router_address":
                unfinished = await grouping.handoff.pass_on(link, request.router_address)
            case _:
                raise InvalidRequestError("say where to: macro_id or router_address", "target")
        return pb.MoveInstanceResponse(groups=self._groups(), unfinished=unfinished)

    async def DrainInstance(  # noqa: N802
        self, request: pb.DrainInstanceRequest, context: Context
    ) -> pb.DrainInstanceResponse:
        """Nothing new for an instance."""
        link = self._grouping.registry.link(request.instance_id)
        model = next(one for one in self._grouping.models if one is link.model)
        drained = model.fleet.drain(
            request.instance_id, resume=request.resume, force=request.force, finish=request.finish
        )
        return pb.DrainInstanceResponse(unfinished=drained.unfinished, handed_over=drained.handed_over)

    async def ScaleInstances(  # noqa: N802
        self, request: pb.ScaleInstancesRequest, context: Context
    ) -> pb.ScaleInstancesResponse:
        """More or fewer instances."""
        model = self._grouping.models.named(request.model)
        fleet = model.fleet
        match request.WhichOneof("change"):
            case "set":
                wanted = request.set
                await fleet.scale_to(wanted, force=request.force)
            case "add":
                wanted = await fleet.scale_by(request.add, force=request.force)
            case "remove":
                wanted = await fleet.scale_by(-request.remove, force=request.force)
            case _:
                raise InvalidRequestError("say how: set, add or remove", "change")
        return pb.ScaleInstancesResponse(wanted=wanted, scaling=self._scaling(model))

    async def SetAutoScaling(  # noqa: N802
        self, request: pb.SetAutoScalingRequest, context: Context
    ) -> pb.SetAutoScalingResponse:
        """By load, or by hand."""
        least, most = request.least or DEFAULT_LEAST, request.most or DEFAULT_MOST
        model = self._grouping.models.named(request.model)
        model.fleet.set_automatic(request.on, least, most)
        return pb.SetAutoScalingResponse(scaling=self._scaling(model))

    async def SetPolicies(  # noqa: N802
        self, request: pb.SetPoliciesRequest, context: Context
    ) -> pb.SetPoliciesResponse:
        """Routing, and scheduling in the instances. A wrong name changes nothing."""
        grouping = self._grouping
        links = (
            [grouping.registry.link(request.instance_id)] if request.instance_id else list(grouping.registry)
        )
        if request.routing:
            self._check_routing(request.routing)
        if request.instance_policy:
            for link in links:
                try:
                    await link.client.choose_policy(request.instance_policy, POLICY_TIMEOUT_S)
                except TidePipeError as error:
                    raise type(error)(f"{link.instance_id}: {error}") from error
        if request.routing:
            for model in grouping.models:
                model.dispatcher.handle(SetPolicy(request.routing))
        policies = {link.instance_id: _policy(link) for link in grouping.registry}
        if request.instance_policy:
            policies |= {link.instance_id: request.instance_policy for link in links}
        return pb.SetPoliciesResponse(
            routing=grouping.models.main.dispatcher.scheduler.policy_name, instance_policies=policies
        )

    def _check_routing(self, name: str) -> None:
        """ConfigError if it is unknown, or finds nothing to go by at any model: there all are alike to it."""
        lacks = [model.dispatcher.scheduler.lacks(name) for model in self._grouping.models]
        if lacks and all(lacks):
            raise ConfigError(lacks[0])

    async def ClearPrefixCaches(  # noqa: N802
        self, request: pb.ClearPrefixCachesRequest, context: Context
    ) -> pb.ClearPrefixCachesResponse:
        """Instances forget what they keep. One that does not answer does not keep the others from it."""
        grouping, name = self._grouping, request.instance_id
        links = [grouping.registry.link(name)] if name else list(grouping.registry)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(cleared(link)) for link in links]
        return pb.ClearPrefixCachesResponse(instances=[task.result() for task in tasks])

    def _home(self, macro_id: str) -> ServedModel:
        """The model that a macro instance serves; NotFoundError lists those there are."""
        models = self._grouping.models
        for model in models:
            if macro_id in model.dispatcher.scheduler.macros:
                return model
        names = ", ".join(name for model in models for name in model.dispatcher.scheduler.macros) or "none"
        raise NotFoundError(f"no macro instance {macro_id}; there are {names}")

    def _groups(self) -> pb.GetGroupsResponse:
        models = self._grouping.models
        scheduler = models.main.dispatcher.scheduler
        bounds = scheduler.config.bounds
        return pb.GetGroupsResponse(
            macros=[
                pb.MacroEntry(
                    macro_id=name, members=[self._member(view) for view in macro.views], model=model.name
                )
                for model in models
                for name, macro in model.dispatcher.scheduler.macros.items()
            ],
            routing=scheduler.policy_name,
            pending=sum(len(model.dispatcher.scheduler.pending) for model in models),
            macro_min=bounds.lower,
            macro_max=bounds.upper,
            scaling=self._scaling(models.main),
            scaling_of_others=[self._scaling(model) for model in models if model is not models.main],
        )

    def _member(self, view: InstanceView) -> pb.MemberEntry:
        now = self._grouping.clock()
        link = self._grouping.registry.link(view.instance_id)
        status = view.status
        entry = pb.MemberEntry(
            instance_id=view.instance_id,
            controller_address=link.announced.address,
            ready=view.ready,
            draining=view.draining,
            report_age_s=now - status.taken if status else -1.0,
            sequences=view.sequences,
            left_tokens=view.left.tokens,
            left_s=view.facts.prefill.seconds(view.left),
            kv_tokens_free=max(0, view.kv_free),
            kv_tokens_total=view.kv_total,
            policy=_policy(link),
            prefill_share=view.role.share,
            share_reason=str(view.role),
        )
        if status is not None:
            entry.phase = phase_to_wire(status.phase)
            if status.slack.count:
                entry.slack_s = status.slack.mean_due - now
        return entry

    def _scaling(self, model: ServedModel) -> pb.ScalingState:
        fleet, now = model.fleet, self._grouping.clock()
        return pb.ScalingState(
            model=model.name,
            automatic=fleet.automatic,
            provisioner=fleet.provisioner is not None,
            starting=sorted(fleet.starting),
            stopping=sorted(fleet.stopping),
            notes=[pb.ScalingNote(age_s=now - when, text=text) for when, text in fleet.notes],
            wanted=fleet.wanted,
        )


async def cleared(link: InstanceLink) -> pb.ClearedPrefixCache:
    """Have an instance forget what it keeps."""
    try:
        blocks = await link.client.clear_prefix_cache(CLEAR_TIMEOUT_S)
    except TidePipeError as error:
        return pb.ClearedPrefixCache(instance_id=link.instance_id, error=str(error))
    return pb.ClearedPrefixCache(instance_id=link.instance_id, blocks=blocks)


def _policy(link: InstanceLink) -> str:
    return link.report.policy if link.report is not None else ""
