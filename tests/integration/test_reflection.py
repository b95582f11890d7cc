"""A generic gRPC client, which has none of our stubs, learns the services from the server and calls them."""

from __future__ import annotations

import asyncio

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.fakes.client import eventually
from tests.fakes.controller import fake_controller, scripted_text
from tests.fakes.router import running_router

SERVICE = "tidepipe.v1.InferenceService"


def call_by_reflection(address: str) -> tuple[list[str], str]:
    """The services' names, and the text of an answer; JSON in, JSON out."""
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        service = DescriptorPool(database).FindServiceByName(SERVICE)
        method = service.methods_by_name["Generate"]
        asked = {"requestId": "r", "text": "tell me", "sampling": {"maxTokens": 9, "temperature": 0}}
        request = json_format.ParseDict({"request": asked}, GetMessageClass(method.input_type)())
        call = channel.unary_stream(
            f"/{SERVICE}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        answers = [json_format.MessageToDict(one) for one in call(request, timeout=20)]
        return list(database.get_services()), "".join(one["delta"].get("text", "") for one in answers)


async def test_reflection_is_enough_to_generate() -> None:
    async with fake_controller() as controller, running_router() as router:
        await controller.register(router.address)
        await eventually(lambda: bool(router.service.registry.connected))
        services, text = await asyncio.to_thread(call_by_reflection, router.address)
        assert {SERVICE, "tidepipe.v1.AdminService", "grpc.health.v1.Health"} <= set(services)
        assert text == scripted_text(list(b"tell me"), 9)
