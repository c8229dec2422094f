"""One call of a tool in the text of an answer: a JSON object that comes in parts."""

import json
import re
from collections.abc import Collection
from typing import Any

_STRUCTURE = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\\x00-\x1f]')
# The usual order, in which the arguments can be given out as they come.
_HEAD = re.compile(
    r'\s*\{\s*(?:"(?:type|id)"\s*:\s*"[^"\\]*"\s*,\s*)?"name"\s*:\s*"([^"\\]*)"\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_FIRST_KEY = re.compile(r'\s*\{\s*(?:"([^"\\]*)"|[^\s"])')
_KEYS = {"name", "arguments", "parameters", "type", "function", "id"}


class CallReader:
    """Follows one object until it ends, or is seen to be no call of a known tool.

    What the object is does not depend on how its text was split. Line breaks and tabs that a model
    writes into a string are escaped in the arguments, as JSON wants them.
    """

    def __init__(self, tools: Collection[str], name: str | None = None) -> None:
        """`name`: that of the call, whose arguments the object is; None where it has both."""
        self.text = ""
        self.name = name
        self.is_refused = name is not None and name not in tools
        self.has_ended = False
        self._tools = tools
        self._is_own_head = name is None
        self._start: int | None = 0 if name is not None else None
        self._end: int | None = None
        self._whole: str | None = None
        self._position = 0
        self._depth = 0
        self._is_in_string = False

    @property
    def has_begun(self) -> bool:
        """Whether the name is certain, so that arguments are given out as they come."""
        return self.name is not None and not self.is_refused

    def arguments(self, start: int) -> str:
        """The JSON text of the arguments from a character on, as far as it is there."""
        if self._whole is not None:
            return self._whole[start:]
        if self._start is None:
            return ""
        end = self._position if self._end is None else self._end
        return self.text[self._start + start : end]

    def feed(self, text: str) -> str:
        """Take more of the text; return what comes after the object, "" until it has ended."""
        self.text += text
        if self.name is None and (head := _HEAD.match(self.text)):
            self._start = head.end()
            self.name = head[1]
            self.is_refused = self.name not in self._tools
        elif self.name is None and (first := _FIRST_KEY.match(self.text)):
            self.is_refused = first[1] not in _KEYS
        self._scan()
        rest = ""
        if self.has_ended:
            self.text, rest = self.text[: self._position], self.text[self._position :]
            if self.name is None and not self.is_refused:
                self._read_whole()
        return rest

    def _scan(self) -> None:
        """Follow brackets and strings through what is new."""
        text = self.text
        while self._position < len(text) and not self.has_ended:
            pattern = _IN_STRING if self._is_in_string else _STRUCTURE
            found = pattern.search(text, self._position)
            if found is None:
                self._position = len(text)
                return
            char, after = found[0], found.end()
            if char == "\\":
                if after == len(text):  # what it escapes is still to come
                    self._position = found.start()
                    return
                after += 1
            elif char == '"':
                self._is_in_string = not self._is_in_string
            elif char < " ":
                if self.has_begun and self._start is not None and found.start() > self._start:
                    escaped = json.dumps(char)[1:-1]
                    self.text = text = text[: found.start()] + escaped + text[after:]
                    after = found.start() + len(escaped)
            elif char in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                is_over = self._depth == (1 if self._is_own_head else 0)
                if self._start is not None and self._end is None and is_over:
                    self._end = after
                self.has_ended = self._depth <= 0
            self._position = after

    def _read_whole(self) -> None:
        """Find name and arguments in an object of another order, or another shape."""
        try:
            value: Any = json.loads(self.text, strict=False)
            function = value.get("function") if isinstance(value.get("function"), dict) else value
            name = function.get("name")
            arguments = function.get("arguments", function.get("parameters")) or {}
            if isinstance(arguments, str):  # some models write the object as a text
                arguments = json.loads(arguments, strict=False)
        except (ValueError, RecursionError):
            self.is_refused = True
            return
        if not isinstance(name, str) or name not in self._tools or not isinstance(arguments, dict):
            self.is_refused = True
            return
        # Half a surrogate pair stays an escape: no text has it.
        written = json.dumps(arguments, ensure_ascii=False).encode(errors="backslashreplace")
        self.name, self._whole = name, written.decode()
