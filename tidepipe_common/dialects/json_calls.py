"""Calls that are JSON: whole ones with their names inside, or arguments behind a name between marks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tidepipe_common.dialects.json_text import json_object, json_value, short_string
from tidepipe_common.dialects.reader import Saying
from tidepipe_common.dialects.source import BrokenError, Marks, Steps

_NAMES = frozenset({"name", "function", "tool", "tool_name"})
_ARGUMENTS = frozenset({"arguments", "parameters", "args", "input"})
_OTHERS = frozenset({"id", "type", "index", "call_id", "tool_call_id"})
_NUMBERED = re.compile(r":\d+$")


@dataclass(frozen=True)
class JsonCalls:
    """`{"name": ..., "arguments": {...}}`, or a list of those, behind one of `opens` or at the beginning.

    Several may follow each other, with commas, semicolons or lines between. then: a mark that may follow the
    first one. keyed: a call may also be `{name: arguments}`.
    """

    opens: Sequence[str] = ()
    closes: Sequence[str] = ()
    bare: str = ""
    dropped: Sequence[str] = ()
    then: str = ""
    keyed: bool = False

    def read(self, said: Saying, mark: str) -> Steps[None]:
        """All calls behind the mark."""
        if self.then:
            yield from said.source.skip_space()
            yield from said.source.take(self.then)
        listed = (yield from said.source.skip_space()) == "["
        if listed:
            said.source.at += 1
        yield from self.read_items(said, mark, listed=listed)

    def read_items(self, said: Saying, mark: str, *, listed: bool) -> Steps[None]:
        """All calls behind the mark, and behind the bracket of a list if there is one."""
        source, before = said.source, said.ended
        while True:
            char = yield from source.skip_space()
            if char == "]" and listed:
                if said.ended == before:
                    raise BrokenError("there is no call in it")
                source.at += 1
                break
            if said.ended > before:
                if char in (",", ";"):
                    source.at += 1
                    char = yield from source.skip_space()
                if not char or (char != "{" and not listed):
                    break
            yield from _call(said, strict=not mark and said.ended == before, keyed=self.keyed)
        yield from source.skip_space()
        yield from source.take_any(self.closes)


def _call(said: Saying, *, strict: bool, keyed: bool = False, depth: int = 0) -> Steps[None]:
    """One call. strict: an object that does not begin like a call is none.

    keyed: it may have its name as a key.
    """
    source = said.source
    char = yield from source.skip_space()
    if char != "{" or depth > 1:
        raise BrokenError("no JSON object follows" if char else "the answer ended in it")
    source.at += 1
    name = ""
    held: list[str] | None = None
    done = False
    while (yield from source.skip_space()) != "}":
        key = yield from short_string(source)
        if (char := (yield from source.skip_space())) != ":":
            raise BrokenError(f"{char!r} is not where JSON has it" if char else "the answer ended in it")
        source.at += 1
        char = yield from source.skip_space()
        if strict and not name and key not in _NAMES | _ARGUMENTS | _OTHERS:
            raise BrokenError("it is another object")
        if key in _NAMES and not name and char == '"':
            name = yield from short_string(source)
            said.begin(name)
            if held is not None:
                said.argue("".join(held))
                said.end()
                done = True
        elif keyed and char == "{" and not name and key in said.tools:
            name, done = key, True
            said.begin(name)
            yield from json_object(source, said.argue)
            said.end()
        elif key == "function" and not name and char == "{":
            yield from _call(said, strict=False, depth=depth + 1)
            name, done = key, True
        elif key in _ARGUMENTS and not done and held is None:
            if name:
                yield from json_object(source, said.argue)
                said.end()
                done = True
            else:
                held = []
                yield from json_object(source, held.append)
        else:
            yield from json_value(source, _ignored)
        char = yield from source.skip_space()
        if char == ",":
            source.at += 1
        elif char != "}":
            if not char and done:
                return
            raise BrokenError(f"{char!r} is not where JSON has it" if char else "the answer ended in it")
    source.at += 1
    if not name:
        raise BrokenError("it has no name")
    if not done:
        said.argue("{}")
        said.end()


def _ignored(_: str) -> None:
    pass


@dataclass(frozen=True)
class NamedJson:
    """A name and its arguments as JSON: CALL name SEPARATOR arguments CLOSE, several perhaps in a section.

    calls: marks before each name; sections: before all of them. separators: between a name and its arguments;
    the last one may be "{", which is read again. listed: some write a list of whole calls instead.
    """

    calls: Sequence[str]
    separators: Sequence[str]
    closes: Sequence[str] = ()
    sections: Sequence[str] = ()
    section_ends: Sequence[str] = ()
    prefix: str = ""
    numbered: bool = False
    listed: bool = False
    kind_first: bool = False
    bare: str = ""
    dropped: Sequence[str] = ()

    @property
    def opens(self) -> Sequence[str]:
        """Marks of calls and of sections."""
        return (*self.sections, *self.calls)

    def read(self, said: Saying, mark: str) -> Steps[None]:
        """All calls behind the mark."""
        source = said.source
        if mark in self.sections:
            yield from source.skip_space()
            if not (yield from source.take_any(self.calls)):
                raise BrokenError("no call follows")
        separators = Marks(self.separators)
        while True:
            if self.listed and (yield from source.skip_space()) in ("[", "{"):
                yield from JsonCalls().read(said, mark)
            else:
                name, separator = yield from source.until(separators)
                if separator == "{":
                    source.at -= 1
                elif self.kind_first and (yield from source.skip_space()) != "{":
                    name, _ = yield from source.until(_LINE)
                said.begin(self._name(name))
                yield from source.skip_space()
                fenced = yield from source.take("```json")
                yield from json_object(source, said.argue)
                said.end()
                if fenced:
                    yield from source.skip_space()
                    yield from source.take("```")
            yield from source.skip_space()
            yield from source.take_any(self.closes)
            yield from source.skip_space()
            if not (yield from source.take_any(self.calls)):
                yield from source.take_any(self.section_ends)
                return

    def _name(self, text: str) -> str:
        name = text.strip()
        if self.numbered:
            name = _NUMBERED.sub("", name)
        return name.removeprefix(self.prefix)


_LINE = Marks("\n")
