"""Texts as WebSocket frames, read back by the websockets library."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from monitoring.events import frames

SIZES = [0, 1, 125, 126, 127, 65_535, 65_536, 70_000]
TEXTS = [letter * size for size in SIZES for letter in "xé€😀"] + ["x" * 124 + "é"]


def parsed(data: bytes) -> list[str]:
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    texts = []
    while reader.buffer:
        parsing = Frame.parse(reader.read_exact, mask=False)
        try:
            next(parsing)
        except StopIteration as end:
            frame = end.value
        assert (frame.opcode, frame.fin) == (Opcode.TEXT, True)
        texts.append(bytes(frame.data).decode())
    return texts


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: f"{len(text.encode())} {text[-1:]}")
def test_frame_is_what_the_library_writes(text: str) -> None:
    framed = frames.frame(text)
    assert framed == Frame(Opcode.TEXT, text.encode()).serialize(mask=False)
    assert frames.text(framed) == text


def test_half_of_a_surrogate_pair_spoils_no_frame() -> None:
    assert parsed(frames.frame("a\ud800b")) == ["a?b"]


@given(st.lists(st.sampled_from(TEXTS)))
def test_frames_are_joined_in_order_up_to_a_size(texts: list[str]) -> None:
    framed = [frames.frame(text) for text in texts]
    pieces = list(frames.joined(framed))
    assert parsed(b"".join(pieces)) == texts
    assert all(len(each) <= frames.MAX_BYTES or len(parsed(each)) == 1 for each in pieces)
    assert all(len(one) + len(other) > frames.MAX_BYTES for one, other in pairwise(pieces))
