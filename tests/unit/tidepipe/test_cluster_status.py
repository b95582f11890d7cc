"""The status of a cluster: public values, each from the message's field of that name."""

from __future__ import annotations

from tidepipe.client.status import InstanceStatus, PhaseSwitch, PredictorStatus, status_from_wire
from tidepipe.v1 import admin_pb2, controller_pb2, predictor_pb2
from tidepipe_common.types.plan import Phase


def test_each_field_arrives() -> None:
    stage = controller_pb2.StageStatus(index=1, address="a:1", layer_end=8, slow_because="one core")
    switch = controller_pb2.PhaseSwitch(
        age_s=2.5, before=controller_pb2.PHASE_PREFILL, after=controller_pb2.PHASE_DECODE, reason="full"
    )
    status = controller_pb2.InstanceStatus(
        phase=controller_pb2.PHASE_MIXED, batch_sizes=[3, 4], stages=[stage], recent_switches=[switch]
    )
    entry = admin_pb2.InstanceEntry(instance_id="i0", connected=True, status=status)
    dead = admin_pb2.InstanceEntry(instance_id="i1", error="gone")
    message = admin_pb2.GetClusterStatusResponse(router_id="r", instances=[entry, dead], warnings=["w"])
    cluster = status_from_wire(message)
    assert (cluster.router_id, cluster.warnings, cluster.predictor) == ("r", ("w",), None)
    assert cluster.instances[1] == InstanceStatus("i1", "", False, False, 0, "gone", None)
    pipeline = cluster.instances[0].status
    assert pipeline is not None
    assert (pipeline.phase, pipeline.batch_sizes) == (Phase.MIXED, (3, 4))
    assert pipeline.recent_switches == (PhaseSwitch(2.5, Phase.PREFILL, Phase.DECODE, "full"),)
    assert (pipeline.stages[0].layer_end, cluster.slow_because) == (8, ("one core",))
    message.predictor.CopyFrom(predictor_pb2.GetPredictorStatusResponse(model_version="m", window=7))
    assert status_from_wire(message).predictor == PredictorStatus("m", 7, 0, 0)


def test_phases_of_a_newer_contract_are_idle() -> None:
    for phase in (0, 99):
        status = controller_pb2.InstanceStatus()
        status.ParseFromString(controller_pb2.InstanceStatus(phase=phase).SerializeToString())  # type: ignore[arg-type]
        message = admin_pb2.GetClusterStatusResponse(instances=[admin_pb2.InstanceEntry(status=status)])
        pipeline = status_from_wire(message).instances[0].status
        assert pipeline is not None and pipeline.phase is Phase.IDLE
