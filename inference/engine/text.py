"""From token bytes to text that may be shown: whole characters, nothing of a stop sequence."""

import codecs


class TextAssembler:
    """Text of one sequence, released token by token.

    Held back are the bytes of a character that is not complete, and the longest suffix that may
    still become a stop sequence. What is released does not depend on how the bytes were split.
    """

    __slots__ = ("_decoder", "_held_back", "_released", "_stop", "stopped_by")

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = stop
        self._held_back = ""
        self._released: list[str] = []
        # The stop sequence that has ended the text.
        self.stopped_by: str | None = None

    @property
    def is_stopped(self) -> bool:
        return self.stopped_by is not None

    @property
    def text(self) -> str:
        """All that was released so far."""
        return "".join(self._released)

    def push(self, token_bytes: bytes) -> str:
        """Take the bytes of one token; return the text that is certain now."""
        return self._extend(self._decoder.decode(token_bytes))

    def finish(self) -> str:
        """Release what was held back: no more bytes will come.

        An incomplete character at the end becomes U+FFFD.
        """
        certain = self._extend(self._decoder.decode(b"", final=True))
        return certain + self._release(len(self._held_back))

    def _extend(self, text: str) -> str:
        if self.is_stopped or not text:
            return ""
        self._held_back += text
        if not self._stop:
            return self._release(len(self._held_back))
        # (end, start, text) of each: the one complete first counts, of several the longest.
        found = [
            (start + len(stop), start, stop)
            for stop in self._stop
            if (start := self._held_back.find(stop)) >= 0
        ]
        if not found:
            return self._release(len(self._held_back) - self._num_chars_to_hold())
        _, start, self.stopped_by = min(found)
        certain = self._release(start)
        self._held_back = ""
        return certain

    def _num_chars_to_hold(self) -> int:
        longest = max(map(len, self._stop)) - 1
        for length in range(min(longest, len(self._held_back)), 0, -1):
            suffix = self._held_back[-length:]
            if any(stop.startswith(suffix) for stop in self._stop):
                return length
        return 0

    def _release(self, num_chars: int) -> str:
        certain = self._held_back[:num_chars]
        self._held_back = self._held_back[num_chars:]
        if certain:
            self._released.append(certain)
        return certain
