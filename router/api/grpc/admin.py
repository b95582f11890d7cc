"""AdminService: how the cluster stands, asked of everyone at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from router.api.grpc.groups import Grouping, GroupsServicer
from router.batches.database import Database
from router.batches.quotas import by_owner
from router.instances.link import InstanceLink
from router.requests.table import RequestTable
from tidepipe.v1 import admin_pb2 as pb
from tidepipe.v1 import predictor_pb2, predictor_pb2_grpc
from tidepipe_common.errors import ConfigError, TidePipeError

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

STATUS_TIMEOUT_S = 2.0
MAX_OWNERS = 1_000


class AdminServicer(GroupsServicer):
    """Answers operators. Who does not answer in time is shown as such."""

    def __init__(
        self,
        router_id: str,
        grouping: Grouping,
        table: RequestTable,
        predictor_address: str,
        predictor: predictor_pb2_grpc.PredictorServiceAsyncStub | None,
        clock: Callable[[], float],
        warnings: Callable[[], Sequence[str]] = tuple,
        database: Database | None = None,
        name_of: Callable[[str], str] = lambda owner: "",
    ) -> None:
        """predictor_address: empty if there is none. warnings: what needs a person, a sentence each.

        database: of what is stored; None: nothing is. name_of: what an owner's key is called.
        """
        super().__init__(grouping)
        self._router_id = router_id
        self._registry = grouping.registry
        self._table = table
        self._predictor_address = predictor_address
        self._predictor = predictor
        self._clock = clock
        self._warnings = warnings
        self._database = database
        self._name_of = name_of
        self._started = clock()

    async def GetClusterStatus(  # noqa: N802
        self, request: pb.GetClusterStatusRequest, context: Context
    ) -> pb.GetClusterStatusResponse:
        """How the whole cluster stands."""
        async with asyncio.TaskGroup() as group:
            predictor = group.create_task(self._predictor_status())
            entries = [group.create_task(_instance_entry(link)) for link in self._registry]
        counts = self._table.counts
        return pb.GetClusterStatusResponse(
            router_id=self._router_id,
            uptime_s=self._clock() - self._started,
            queued=counts.queued,
            running=counts.running,
            finished=counts.finished,
            failed=counts.failed,
            shed=counts.shed,
            warnings=self._warnings(),
            max_requests=self._table.max_requests,
            instances=[entry.result() for entry in entries],
            predictor=predictor.result(),
            predictor_address=self._predictor_address,
        )

    async def GetStorage(self, request: pb.GetStorageRequest, context: Context) -> pb.GetStorageResponse:  # noqa: N802
        """Who has stored how much."""
        if self._database is None:
            raise ConfigError("this router stores nothing; start it with --data-dir")
        limits = self._database.limits
        owners = await self._database.run(by_owner, MAX_OWNERS)
        entries = []
        for owner, there in owners.items():
            quota = limits.quotas.of(owner)
            entries.append(
                pb.StoredByOwner(
                    owner=owner,
                    name=self._name_of(owner),
                    files=there.files,
                    batches=there.batches,
                    responses=there.responses,
                    bytes=there.bytes,
                    max_bytes=quota.max_bytes,
                    max_items=quota.max_items,
                )
            )
        return pb.GetStorageResponse(owners=entries, files_max_bytes=limits.max_bytes)

    async def _predictor_status(self) -> predictor_pb2.GetPredictorStatusResponse | None:
        if self._predictor is None:
            return None
        try:
            return await self._predictor.GetPredictorStatus(
                predictor_pb2.GetPredictorStatusRequest(), timeout=STATUS_TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            return None


async def _instance_entry(link: InstanceLink) -> pb.InstanceEntry:
    entry = pb.InstanceEntry(
        instance_id=link.instance_id,
        controller_address=link.announced.address,
        connected=link.connected,
        draining=link.draining or not link.lease_valid,
        assigned=len(link.placements),
        model=link.model.name,
    )
    try:
        entry.status.CopyFrom(await link.client.status(STATUS_TIMEOUT_S))
    except TidePipeError as error:
        entry.error = str(error)
    return entry
