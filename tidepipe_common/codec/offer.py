"""What an instance tells of its model besides what it is, on the wire."""

from __future__ import annotations

from tidepipe.v1 import controller_pb2
from tidepipe_common.settings.instance import InstanceSettings


def add_offer(message: controller_pb2.DescribeResponse, settings: InstanceSettings) -> None:
    """Names, targets, provisioner, and how its text is read, as its operator gave them."""
    message.served_names.extend(settings.served_names)
    message.ttft_ms = settings.ttft_ms or 0.0
    message.tpot_ms = settings.tpot_ms or 0.0
    message.provisioner = settings.provisioner or ""
    message.tool_parser = settings.tool_parser or ""
    message.reasoning_parser = settings.reasoning_parser or ""
    message.pooling = settings.pooling or ""
