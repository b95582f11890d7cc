"""Clients that agents are built with, against a running cluster: LangChain, Pydantic AI, LiteLLM, Anthropic.

    pip install langchain-openai 'pydantic-ai-slim[openai]' 'litellm[proxy]' anthropic
    python bench/agent_clients.py http://127.0.0.1:8080 smollm2-135m

Needs nothing of TidePipe, so it runs in an environment of its own. Each client is used as its documentation
has it: a tool is called, its result is sent back, and an answer comes; a structured answer is an object of a
class. A model too small to call by itself is made to. What is not installed is said and left out; the first
thing that is not as it should be ends the program with an error.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

QUESTION = "What is the weather in Paris?"
RESULT = "Sunny, 21 degrees."
CITIES = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}}}
SCHEMA = {**CITIES, "required": ["city"], "additionalProperties": False}
STARTS_S = 90.0


def langchain(url: str, model: str) -> None:
    """A tool of LangChain's is called, and its result used; an object of a class comes back."""
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    @tool
    def get_weather(city: str) -> str:
        """The weather of a city."""
        return f"{city}: {RESULT}"

    llm = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, temperature=0, max_tokens=60)
    asked = [HumanMessage(QUESTION)]
    first = llm.bind_tools([get_weather], tool_choice="get_weather").invoke(asked)
    (call,) = first.tool_calls
    assert call["name"] == "get_weather" and isinstance(call["args"]["city"], str)
    told = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    answer = llm.bind_tools([get_weather]).invoke([*asked, first, told])
    assert answer.content, "it says something about the weather"
    pieces = [chunk.content for chunk in llm.stream(asked)]
    assert len(pieces) > 2 and "".join(map(str, pieces))
    person = llm.with_structured_output(Person).invoke("Ann is thirty years old.")
    assert isinstance(person, Person)


def pydantic_ai(url: str, model: str) -> None:
    """An agent whose answer is an object, which it gives by calling a tool."""
    from pydantic import BaseModel
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class City(BaseModel):
        name: str
        inhabitants: int

    chat = OpenAIChatModel(model, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))
    agent = Agent(chat, output_type=City, model_settings={"temperature": 0, "max_tokens": 80})
    result = agent.run_sync("Paris has two million inhabitants.")
    assert isinstance(result.output, City)
    talking = Agent(chat, model_settings={"temperature": 0, "max_tokens": 20})
    assert talking.run_sync("Say hello.").output


def anthropic(url: str, model: str) -> None:
    """Anthropic's client: a tool is called, and its result used; the same as a stream."""
    from anthropic import Anthropic

    client = Anthropic(base_url=url, api_key="none")
    tools = [{"name": "get_weather", "description": "Of a city.", "input_schema": SCHEMA}]
    asked = [{"role": "user", "content": QUESTION}]
    common = {"model": model, "max_tokens": 60, "tools": tools, "extra_body": {"temperature": 0}}
    first = client.messages.create(
        **common, messages=asked, tool_choice={"type": "tool", "name": "get_weather"}
    )
    call = next(block for block in first.content if block.type == "tool_use")
    assert call.input["city"] in ("Paris", "Rome") and first.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": RESULT}
    history = [*asked, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    with client.messages.stream(**common, messages=history) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text and text.strip() == "".join(b.text for b in final.content if b.type == "text").strip()
    assert client.messages.count_tokens(model=model, messages=history, tools=tools).input_tokens > 10


def litellm(url: str, model: str) -> None:
    """LiteLLM as a proxy before us, which OpenAI's client asks."""
    import openai

    key = f"sk-{secrets.token_hex(16)}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    behind = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none"}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(json.dumps({"model_list": [{"model_name": "ours", "litellm_params": behind}]}))
        command = [
            str(Path(sys.executable).with_name("litellm")),
            "--config",
            str(config),
            "--port",
            str(port),
        ]
        with (Path(folder) / "log").open("w") as log:
            environment = {**os.environ, "LITELLM_MASTER_KEY": key}
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            _answers(f"http://127.0.0.1:{port}/health/liveliness")
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)
            messages = [{"role": "user", "content": QUESTION}]
            chat = {"model": "ours", "messages": messages, "max_tokens": 60, "temperature": 0}
            whole = client.chat.completions.create(**chat).choices[0].message.content
            chunks = [chunk for chunk in client.chat.completions.create(**chat, stream=True) if chunk.choices]
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
            weather = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
            must = client.chat.completions.create(**chat, tools=[weather], tool_choice="required")
            call, *_ = must.choices[0].message.tool_calls
            assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
        finally:
            process.terminate()
            process.wait(20)


def _answers(url: str) -> None:
    end = time.monotonic() + STARTS_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


CLIENTS: dict[str, tuple[str, Callable[[str, str], None]]] = {
    "LangChain": ("langchain_openai", langchain),
    "Pydantic AI": ("pydantic_ai", pydantic_ai),
    "Anthropic": ("anthropic", anthropic),
    "LiteLLM's proxy": ("litellm", litellm),
}
"""By name: the package, and what is done with it."""


def main() -> None:
    """Entry point."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: python bench/agent_clients.py URL MODEL")
    url, model = sys.argv[1].rstrip("/"), sys.argv[2]
    for name, (package, use) in CLIENTS.items():
        if importlib.util.find_spec(package) is None:
            print(f"{name}: not installed here")
            continue
        use(url, model)
        print(f"{name}: as it should be", flush=True)


if __name__ == "__main__":
    main()
