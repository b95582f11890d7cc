"""`python -m router.text.template_trial`: chat templates tried out on a few words, before anybody sends more.

A template is a program. One that does not end, or takes all memory, would do so in the thread that serves
every request; so it runs first in this process, which the system ends if need be. Standard input has the
templates, standard output what is wrong with their syntax. Whether they accept these conversations is theirs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tidepipe_common.errors import ModelError
from tidepipe_common.process_limits import limit_process

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_CPU_S = 2
MAX_WALL_S = 30
"""On a machine that has other things to do."""
MAX_BYTES = 1 << 30
MAX_CHARACTERS = 1 << 20
"""That a template may write for a conversation of a few words."""

_SYNTAX, _TOO_LONG, _NO_ROOM = 3, 4, 5
_CONVERSATIONS = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
)


def try_out(templates: Sequence[str], source: str) -> None:
    """ModelError, which begins with `source`, if one of them cannot be used."""
    command = [sys.executable, "-P", "-m", "router.text.template_trial"]
    try:
        result = subprocess.run(
            command,
            input=json.dumps(templates).encode(),
            capture_output=True,
            timeout=MAX_WALL_S,
            check=False,
        )
        code, said = result.returncode, result.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired:
        code, said = -signal.SIGPROF, ""
    if code == _SYNTAX:
        raise ModelError(f"{source}: {said}")
    if code == _TOO_LONG:
        raise ModelError(f"{source}: writes more than {MAX_CHARACTERS} characters for a few words")
    if code > 0 and code != _NO_ROOM:
        raise ModelError(f"{source}: cannot be tried out: {_last_line(result.stderr)}")
    if code == _NO_ROOM or code < 0:
        raise ModelError(f"{source}: takes more than {MAX_CPU_S} s or {MAX_BYTES >> 20} MiB for a few words")


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "its process ended"


def main() -> int:
    """The exit code says what is wrong."""
    limit_process(MAX_BYTES, MAX_CPU_S)
    from jinja2 import TemplateSyntaxError

    try:
        for template in json.load(sys.stdin):
            try:
                texts = list(_rendered(template))
            except TemplateSyntaxError as error:
                print(f"line {error.lineno}: {' '.join(str(error.message).split())[:200]}", end="")
                return _SYNTAX
            except RecursionError:
                print("it is nested too deeply", end="")
                return _SYNTAX
            except (SyntaxError, ValueError, OverflowError) as error:
                # Python's own compiler, which takes what jinja2 makes of it.
                print(f"it cannot be compiled: {' '.join(str(error).split())[:200]}", end="")
                return _SYNTAX
            if any(length > MAX_CHARACTERS for length in texts):
                return _TOO_LONG
    except MemoryError:
        return _NO_ROOM
    return 0


def environment() -> Environment:
    """What templates run in, set up as transformers does it."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The mark around answers, which matters to training alone."""

        tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise ValueError(message)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.globals.update(
        raise_exception=refuse, strftime_now=lambda layout: layout, bos_token="<s>", eos_token="</s>"
    )
    made.filters["tojson"] = lambda value, *_, **__: json.dumps(value)
    return made


def _rendered(source: str) -> Iterable[int]:
    """How long the texts of the conversations are, if the template accepts them."""
    template = environment().from_string(source)
    for roles in _CONVERSATIONS:
        length = 0
        messages = [{"role": role, "content": "Hello there, friend."} for role in roles]
        try:
            for piece in template.generate(messages=messages, tools=None, add_generation_prompt=True):
                length += len(piece)
                if length > MAX_CHARACTERS:
                    break
        except MemoryError:
            raise
        except Exception:  # whatever the template makes of them
            continue
        yield length


if __name__ == "__main__":
    # At once: what a template has made need not be taken apart.
    code = main()
    sys.stdout.flush()
    os._exit(code)
