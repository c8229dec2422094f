"""llama.cpp writes its log in pieces; a reader sees lines and the last errors."""

import logging

import pytest

from inference.engine.native_log import NativeLog

DEBUG, INFO, WARN, ERROR, CONT = 1, 2, 3, 4, 5


def test_pieces_become_lines_with_a_level(caplog: pytest.LogCaptureFixture) -> None:
    log = NativeLog()
    with caplog.at_level(logging.DEBUG, logger="inference.engine.llama_cpp"):
        for level, text in [(INFO, "load"), (CONT, "ing"), (CONT, " 10%\n"), (WARN, "slow\n")]:
            log.write(level, text)
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.DEBUG, "loading 10%"),
        (logging.WARNING, "slow"),
    ]


def test_last_errors_are_kept_until_cleared() -> None:
    log = NativeLog(max_errors=2)
    for text in ("one\n", "two\n", "two\n", "three"):
        log.write(ERROR, text)
    assert log.last_errors() == "two; three"
    log.clear_errors()
    assert log.last_errors() == ""
