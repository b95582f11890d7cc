"""gpt-oss's harmony: messages with channels, for thought, words and calls."""

from __future__ import annotations

import re

from tidepipe_common.dialects.json_text import json_object
from tidepipe_common.dialects.parts import Thought, Words
from tidepipe_common.dialects.reader import PausingReader
from tidepipe_common.dialects.source import BrokenError, Marks, Steps

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END, RETURN, CALL = "<|end|>", "<|return|>", "<|call|>"
MARKS = (START, CHANNEL, CONSTRAIN, MESSAGE, END, RETURN, CALL)
_ENDS = Marks((START, END, RETURN, CALL, CHANNEL))
_HEADER = Marks((MESSAGE, END, RETURN, CALL))
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_NAMED_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
_FUNCTIONS = "functions."


class HarmonyReader(PausingReader):
    """A `Reader` of harmony's messages.

    A message is a thought in the channel `analysis`, a call if it has a function as its recipient, and words
    otherwise. What is no message, or a call that is none, is words, as it was written.
    """

    def _read(self) -> Steps[None]:
        source = self._source
        mark = ""
        thinking = False
        while True:
            # Between messages, or where a message without a header goes on.
            if mark in (START, CHANNEL):
                at = source.position - len(mark)
                source.record(mark)
                try:
                    thinking = yield from self._message(mark)
                    source.recorded()
                except BrokenError as broken:
                    self._warn(broken)
                    self._said.say(Words(source.recorded()))
                    thinking = False
                self._thinks(thinking, at)
            mark = yield from self._text(thinking)
            if not mark:
                return

    def _message(self, mark: str) -> Steps[bool]:
        """A header, and a call's arguments; the text of other messages is left. True if it is thought."""
        source = self._source
        header, end = yield from source.until(_HEADER)
        if end != MESSAGE:
            raise BrokenError("it has no text")
        header = mark + header
        named = _NAMED_CHANNEL.search(header)
        recipient = _RECIPIENT.search(header)
        if recipient is not None and (name := recipient.group(1)) != "all":
            if named is not None and named.group(1) == "analysis" and not name.startswith(_FUNCTIONS):
                return True  # tools of its own, such as a browser, which nobody has given it
            self._said.begin(name.removeprefix(_FUNCTIONS))
            yield from json_object(source, self._said.argue)
            self._said.end()
            yield from source.skip_space()
            return False
        return named is not None and named.group(1) == "analysis"

    def _text(self, thinking: bool) -> Steps[str]:
        """Text up to a mark that ends it; that mark, or empty at the end of all text."""
        source = self._source
        while True:
            text, mark = source.before(_ENDS)
            if text:
                self._said.say(Thought(text) if thinking else Words(text))
            if mark in (START, CHANNEL):
                return mark
            if mark:
                thinking = False
                self._thinks(False, source.position)
            elif source.ended:
                return ""
            else:
                yield
