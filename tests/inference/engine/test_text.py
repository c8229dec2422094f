"""Text is the same however its bytes were split, and never shows a stop sequence."""

from hypothesis import example, given
from hypothesis import strategies as st

from inference.engine.text import TextAssembler

# Few characters, of 1 to 4 bytes, so that stops occur and overlap.
TEXT = st.text(alphabet="abé日😀", max_size=30)
STOPS = st.lists(st.text(alphabet="abé日😀", min_size=1, max_size=4), max_size=4).map(tuple)


def assemble(pieces: list[bytes], stop: tuple[str, ...]) -> str:
    assembler = TextAssembler(stop)
    released = ""
    for piece in pieces:
        released += assembler.push(piece)
        if assembler.is_stopped:
            break
    released += assembler.finish()
    assert assembler.text == released
    return released


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[i:j] for i, j in zip([0, *places], [*places, len(data)], strict=True)]


@given(TEXT, STOPS, st.lists(st.integers(0, 200), max_size=20))
@example("xabc", ("ab", "xabc"), [1, 2, 3])
def test_splits_do_not_change_the_text(text: str, stop: tuple[str, ...], cuts: list[int]) -> None:
    data = text.encode()
    byte_by_byte = assemble([data[i : i + 1] for i in range(len(data))], stop)
    assert assemble([data], stop) == byte_by_byte
    assert assemble(split(data, cuts), stop) == byte_by_byte


@given(TEXT, STOPS)
def test_text_ends_before_the_first_complete_stop(text: str, stop: tuple[str, ...]) -> None:
    result = assemble([text.encode()], stop)
    assert text.startswith(result)
    assert not any(sequence in result for sequence in stop)
    if not any(sequence in text for sequence in stop):
        assert result == text


@given(st.binary(max_size=30), st.lists(st.integers(0, 200), max_size=10))
def test_invalid_bytes_are_replaced_alike_in_all_splits(data: bytes, cuts: list[int]) -> None:
    assert assemble(split(data, cuts), ()) == data.decode(errors="replace")


def test_incomplete_character_is_held_back_and_replaced_at_the_end() -> None:
    assembler = TextAssembler()
    assert assembler.push("é".encode()[:1]) == ""
    assert assembler.finish() == "\ufffd"


def test_beginning_of_a_stop_is_held_back_until_it_cannot_be_one() -> None:
    assembler = TextAssembler(("END",))
    assert assembler.push(b"the E") == "the "
    assert assembler.push(b"N") == ""
    assert assembler.push(b"EMY") == "ENEMY"
    assert assembler.push(b" END, and more") == " "
    assert assembler.is_stopped
    assert assembler.push(b"more") == ""
    assert assembler.finish() == ""


def test_held_back_text_is_released_at_the_end() -> None:
    assembler = TextAssembler(("END",))
    assembler.push(b"the EN")
    assert assembler.finish() == "EN"
