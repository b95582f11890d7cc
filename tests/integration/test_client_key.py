"""Who asks and how, from the router's doors to the controller: as hashes and numbers, and nothing else."""

from __future__ import annotations

import httpx
import numpy as np

from tests.fakes.client import request
from tests.fakes.controller import fake_controller
from tests.fakes.router import running_router
from tidepipe.v1 import inference_pb2 as pb
from tidepipe_common.lengths.prompt import DENSE

SECRET = "s3cret" * 6
ALICE = "alice@example.com"


async def test_clients_are_told_apart_by_key_and_user() -> None:
    """One key and user have one hash, over HTTP and gRPC; another key or user another one; nobody has 0."""
    async with fake_controller() as controller, running_router() as router:
        await controller.register(router.address)
        wanted = request("by-grpc", max_tokens=1)
        wanted.user = ALICE
        metadata = (("authorization", f"Bearer tp-aaaa-{SECRET}"),)
        call = router.stub.Generate(pb.GenerateRequest(request=wanted), metadata=metadata, timeout=20)
        assert [message async for message in call]
        names = ["by-grpc"]
        async with httpx.AsyncClient(base_url=f"http://{router.http}", timeout=20, trust_env=False) as http:
            for name, key, user in (
                ("same", "aaaa", ALICE),
                ("other-key", "bbbb", ALICE),
                ("other-user", "aaaa", "bob"),
                ("no-key", None, ALICE),
                ("nobody", None, None),
                ("odd", None, 5),
            ):
                headers = {}
                if key:
                    headers["authorization"] = f"Bearer tp-{key}-{SECRET}"
                body = {"prompt": "tell me", "max_tokens": 1, "user": user}
                response = await http.post("/v1/completions", json=body, headers=headers)
                assert response.status_code == 200, response.text
                names.append(name)
            tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
            turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}]
            turns += [{"role": "assistant", "content": "twelve chars"}, {"role": "user", "content": "two"}]
            body = {"messages": turns, "max_tokens": 2, "tools": [tool], "min_tokens": 1, "stop": ["y", "z"]}
            response = await http.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
    *_, chat = controller.submitted
    seen = dict(zip(DENSE, np.expm1(chat.prompt_features.dense).round(3).tolist(), strict=True))
    assert (seen["tools"], seen["least_tokens"]) == (1, 1)
    assert (seen["system_characters"], seen["last_answer_characters"]) == (8, 12)
    del controller.submitted[-1:]
    hashes = {
        name: spec.prompt_features.client_hash for name, spec in zip(names, controller.submitted, strict=True)
    }
    assert hashes["by-grpc"] == hashes["same"] != 0
    assert len({hashes[name] for name in ("same", "other-key", "other-user", "no-key", "nobody")}) == 5
    assert hashes["nobody"] == hashes["odd"] == 0
    sent = b"".join(spec.SerializeToString() for spec in (*controller.submitted, chat))
    assert SECRET.encode() not in sent and ALICE.encode() not in sent
