"""llama.cpp's own log lines: to Python's logging, and the last errors kept for a message."""

import logging
from collections import deque

logger = logging.getLogger("inference.engine.llama_cpp")

# enum ggml_log_level of ggml.h. Information is debug output here: a load prints hundreds of lines.
_WARN, _ERROR, _CONT = 3, 4, 5
_LEVELS = {_WARN: logging.WARNING, _ERROR: logging.WARNING}


class NativeLog:
    """Joins what llama.cpp writes to whole lines, and remembers the errors among them."""

    def __init__(self, max_errors: int = 8) -> None:
        self._errors: deque[str] = deque(maxlen=max_errors)
        self._line = ""
        self._level = 0

    def write(self, level: int, text: str) -> None:
        """Take a part of a line; `level` is a ggml_log_level, CONT goes on with the line before."""
        if level != _CONT:
            self._flush()
            self._level = level
        self._line += text
        if self._line.endswith("\n"):
            self._flush()

    def clear_errors(self) -> None:
        self._errors.clear()

    def last_errors(self) -> str:
        """The error lines since `clear_errors`, as one sentence fragment; may be empty."""
        self._flush()
        return "; ".join(dict.fromkeys(self._errors))

    def _flush(self) -> None:
        line, self._line = self._line.strip(), ""
        if not line:
            return
        logger.log(_LEVELS.get(self._level, logging.DEBUG), "%s", line)
        if self._level == _ERROR:
            self._errors.append(line)
