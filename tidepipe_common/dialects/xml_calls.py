"""Calls that are written like XML: a name, and an element for each argument, whose values have no quotes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tidepipe_common.dialects.json_calls import JsonCalls
from tidepipe_common.dialects.json_text import json_object
from tidepipe_common.dialects.reader import Saying
from tidepipe_common.dialects.source import BrokenError, Marks, Steps

_HEAD_END = Marks(">")


@dataclass(frozen=True)
class XmlCalls:
    """OPEN FUNCTION name> PARAMETER name> value </PARAMETER> ... </FUNCTION> CLOSE.

    Names may have quotes, and ` string="true"` behind them. lines: values stand on lines of their own.
    Behind OPEN there may also be JSON calls, which is how such models can be held to a schema.
    """

    sections: Sequence[str]
    closes: Sequence[str]
    function: str
    function_end: str
    parameter: str
    parameter_end: str
    lines: bool = False
    bare: str = ""
    dropped: Sequence[str] = ()

    @property
    def opens(self) -> Sequence[str]:
        """Marks of sections, and of functions without one."""
        return (*self.sections, self.function)

    def read(self, said: Saying, mark: str) -> Steps[None]:
        """All calls behind the mark."""
        source = said.source
        if mark != self.function:
            if (yield from source.skip_space()) in ("{", "["):
                yield from JsonCalls(closes=self.closes).read(said, mark)
                return
            if not (yield from source.take(self.function)):
                raise BrokenError("no function follows")
        while True:
            head, _ = yield from source.until(_HEAD_END)
            name, _ = _names(head)
            said.begin(name)
            if (yield from source.skip_space()) == "{":
                yield from json_object(source, said.argue)
                yield from source.skip_space()
                ended = yield from source.take(self.function_end)
            else:
                ended = yield from self._arguments(said, name)
            said.end()
            if not ended:
                return
            yield from source.skip_space()
            if not (yield from source.take(self.function)):
                break
        yield from source.take_any(self.closes)

    def _arguments(self, said: Saying, name: str) -> Steps[bool]:
        source = said.source
        said.argue("{")
        separator = ""
        while True:
            yield from source.skip_space()
            if (yield from source.take(self.parameter)):
                head, _ = yield from source.until(_HEAD_END)
                key, text = _names(head)
                said.argue(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
                yield from element(said, name, key, self.parameter_end, lines=self.lines, text=text or None)
                separator = ", "
            elif (yield from source.take(self.function_end)):
                said.argue("}")
                return True
            else:
                raise BrokenError(f"neither {self.parameter} nor {self.function_end} follows")


@dataclass(frozen=True)
class KeyedXmlCalls:
    """OPEN name <arg_key>key</arg_key><arg_value>value</arg_value> ... CLOSE."""

    opens: Sequence[str] = ("<tool_call>",)
    close: str = "</tool_call>"
    bare: str = ""
    dropped: Sequence[str] = ()

    def read(self, said: Saying, mark: str) -> Steps[None]:
        """One call."""
        source = said.source
        if (yield from source.skip_space()) in ("{", "["):
            yield from JsonCalls(closes=(self.close,)).read(said, mark)
            return
        name, end = yield from source.until(Marks(("<arg_key>", self.close)))
        name = name.strip()
        said.begin(name)
        said.argue("{")
        separator = ""
        while end != self.close:
            key, _ = yield from source.until(Marks(("</arg_key>",)))
            key = key.strip()
            yield from source.skip_space()
            if not (yield from source.take("<arg_value>")):
                raise BrokenError("no <arg_value> follows")
            said.argue(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
            yield from element(said, name, key, "</arg_value>", lines=False)
            separator = ", "
            yield from source.skip_space()
            end = yield from source.take_any(("<arg_key>", self.close))
            if not end:
                raise BrokenError(f"neither <arg_key> nor {self.close} follows")
        said.argue("}")
        said.end()


def element(
    said: Saying, tool: str, key: str, end: str, *, lines: bool, text: bool | None = None
) -> Steps[None]:
    """The value of an argument, up to its end mark, said as JSON: text as it comes, anything else whole.

    text: True if it is known to be text; None: as the tool's schema has it.
    """
    source, marks = said.source, Marks((end,))
    as_text = said.tools.is_text(tool, key) if text is None else text
    held: list[str] = []
    waiting = ""  # a line end that may be the last
    begun = False
    if as_text:
        said.argue('"')
    while True:
        piece, mark = source.before(marks)
        if lines and not begun and piece:
            begun = True
            piece = piece.removeprefix("\n")
        piece = waiting + piece
        waiting = ""
        if lines and piece.endswith("\n"):
            piece, waiting = piece[:-1], "\n"
        if as_text:
            said.argue(json.dumps(piece, ensure_ascii=False)[1:-1])
        else:
            held.append(piece)
        if mark:
            break
        if source.ended:
            raise BrokenError("the answer ended in it")
        yield
    said.argue('"' if as_text else said.tools.value(tool, key, "".join(held)))


def _names(head: str) -> tuple[str, bool]:
    """The name in a head, and whether it says that its value is text."""
    head = head.strip()
    if head[:1] in ('"', "'"):
        name, _, rest = head[1:].partition(head[0])
    else:
        name, _, rest = head.partition(" ")
    return name, 'string="true"' in rest
