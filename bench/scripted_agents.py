"""Codex and Claude Code, unchanged, at a router whose model does what a script says.

    npm install --prefix /tmp/agents @openai/codex @anthropic-ai/claude-code
    python -m bench.scripted_agents --codex /tmp/agents/node_modules/.bin/codex \\
        --claude /tmp/agents/node_modules/.bin/claude

Models that call tools by themselves are larger than what runs here. So the tokens are given: the agent is
told to read a file, then to write one, and then what it has found; everything else is the product's own: the
door, prompts, parsing, streams, and of the agent all of it. What the last answer says stands in the file
alone, so that it can only have come back as the result of a call. Exits with 1 if an agent does not do it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.controller import fake_controller
from tests.fakes.router import running_router
from tests.fakes.text import ByteText
from tidepipe_common.dialects import Dialect, dialect_named

DIALECT = "hermes"
TASK = "Read word.txt and write what it says into answer.txt."
WORD = "ultramarine"
LIMIT_S = 90.0


@dataclass(frozen=True)
class Agent:
    """tool: that runs commands; argument: which of its arguments is the command."""

    name: str
    tool: str
    argument: str

    def call(self, command: str) -> tuple[str, str]:
        """Name and arguments."""
        return self.tool, json.dumps({self.argument: command})


CODEX = Agent("codex", "exec_command", "cmd")
CLAUDE = Agent("claude", "Bash", "command")


def answer(agent: Agent, dialect: Dialect, prompt: str) -> str:
    """What the model says to a prompt."""
    if TASK not in prompt:
        return "Words."  # a title, or whatever else an agent asks for beside its work
    results = prompt[prompt.rindex(TASK) :].split("\ntool: ")[1:]
    assert dialect.form is not None
    match len(results):
        case 0:
            return "I read it first.\n" + dialect.form.written([agent.call("cat word.txt")])
        case 1:
            found = re.search(r"The word is (\w+)", results[0])
            word = found[1] if found else "not there"
            return dialect.form.written([agent.call(f"printf %s {word} > answer.txt")])
        case _:
            return "Done: " + " ".join(re.findall(r"The word is \w+", results[0]))


async def run(agent: Agent, command: Sequence[str], environment: dict[str, str], folder: Path) -> str:
    """What the agent prints; AssertionError if it did not do its task."""
    (folder / "word.txt").write_text(f"The word is {WORD}.\n")
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    except TimeoutError:
        process.kill()
        printed, _ = await process.communicate()
        raise AssertionError(f"it did not end within {LIMIT_S:g} s: {printed.decode()[-2000:]}") from None
    text = printed.decode()
    target = folder / "answer.txt"
    assert target.exists() and target.read_text() == WORD, f"it wrote no such file: {text[-2000:]}"
    assert f"The word is {WORD}" in text, f"the last answer is not there: {text[-2000:]}"
    return text


def codex_command(program: str, url: str, home: Path) -> tuple[list[str], dict[str, str]]:
    """As docs/reference/responses.md has it."""
    (home / "config.toml").write_text(
        f'model = "fake"\nmodel_provider = "tidepipe"\nweb_search = "disabled"\n'
        f'[model_providers.tidepipe]\nname = "TidePipe"\nbase_url = "{url}/v1"\nwire_api = "responses"\n'
    )
    # Its sandbox wants rights that containers do not have.
    flags = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    return [program, "exec", *flags, TASK], {"CODEX_HOME": str(home)}


def claude_command(program: str, url: str, home: Path) -> tuple[list[str], dict[str, str]]:
    """As docs/reference/messages.md has it."""
    models = ("ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL")
    settings = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_AUTH_TOKEN": "none", "CLAUDE_CONFIG_DIR": str(home)}
    quiet = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    command = [program, "-p", TASK, "--allowedTools", "Bash"]
    return command, settings | quiet | dict.fromkeys(models, "fake")


async def agents(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One after the other."""
    programs = ((CODEX, arguments.codex, codex_command), (CLAUDE, arguments.claude, claude_command))
    reports: list[dict[str, Any]] = []
    for agent, program, command_of in programs:
        if not program:
            continue
        dialect = dialect_named(DIALECT)

        def script(
            prompt: Sequence[int], agent: Agent = agent, dialect: Dialect = dialect
        ) -> Sequence[int] | None:
            return list(answer(agent, dialect, bytes(prompt).decode("utf-8", "replace")).encode())

        with tempfile.TemporaryDirectory() as folder:
            home, work, data = (Path(folder) / name for name in ("home", "work", "data"))
            for path in (home, work, data):
                path.mkdir()
            async with (
                fake_controller(context_length=1_000_000, script=script) as controller,
                running_router(lambda *_: ByteText(DIALECT), data_dir=str(data)) as router,
            ):
                await controller.register(router.address)
                command, environment = command_of(program, f"http://{router.http}", home)
                try:
                    printed, fault = await run(agent, command, environment, work), ""
                except AssertionError as error:
                    printed, fault = "", str(error)
                asked = [len(spec.prompt_token_ids) for spec in controller.submitted]
        if arguments.verbose:
            print(printed)
        reports.append(
            {"agent": agent.name, "fault": fault, "requests": len(asked), "largest": max(asked, default=0)}
        )
    return reports


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--codex", default="", metavar="PROGRAM")
    parser.add_argument("--claude", default="", metavar="PROGRAM")
    parser.add_argument("-v", "--verbose", action="store_true", help="what they print")
    reports = asyncio.run(agents(parser.parse_args()))
    for report in reports:
        print(json.dumps(report, ensure_ascii=False))
    if not reports or any(report["fault"] for report in reports):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
