"""Fitting a history into a context window."""

from hypothesis import given
from hypothesis import strategies as st

from conversations.context import drop_oldest_turns, fit
from conversations.models import ChatMessage, text_of


def message(role: str, content: str) -> ChatMessage:
    return {"role": role, "content": content}


def num_tokens(messages: list[ChatMessage]) -> int:
    return sum(len(message["content"]) for message in messages)


HISTORY = [
    message("system", "s"),
    message("user", "aaaa"),
    message("assistant", "AAAA"),
    message("user", "bbbb"),
    message("assistant", "BBBB"),
    message("user", "c"),
]


def test_what_fits_is_left_alone() -> None:
    assert drop_oldest_turns(HISTORY, 18, num_tokens) == (HISTORY, 0)


def test_a_question_goes_with_its_answer() -> None:
    kept, num_dropped = drop_oldest_turns(HISTORY, 17, num_tokens)
    assert ([m["content"] for m in kept], num_dropped) == (["s", "bbbb", "BBBB", "c"], 2)


def test_system_and_last_message_stay_even_when_too_long() -> None:
    kept, num_dropped = drop_oldest_turns(HISTORY, 0, num_tokens)
    assert ([m["content"] for m in kept], num_dropped) == (["s", "c"], 4)


def test_text_that_cannot_be_counted_counts_as_too_long() -> None:
    def count(messages: list[ChatMessage]) -> int:
        return 10**9 if len(messages) > 4 else num_tokens(messages)

    kept, _ = drop_oldest_turns(HISTORY, 100, count)
    assert len(kept) == 4


messages = st.lists(
    st.builds(
        message,
        st.sampled_from(["system", "user", "assistant"]),
        st.text("x", min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=12,
)


@given(messages, st.integers(0, 80))
def test_rest_fits_or_nothing_more_can_go(history: list[ChatMessage], max_tokens: int) -> None:
    # Equal messages must be told apart, so each is known by its place.
    placed = [message(m["role"], text_of(m)) for m in history]
    kept, num_dropped = drop_oldest_turns(placed, max_tokens, num_tokens)
    places = [next(i for i, m in enumerate(placed) if m is one) for one in kept]
    gone = set(range(len(placed))) - set(places)
    must_stay = {i for i, m in enumerate(placed) if m["role"] == "system"} | {len(placed) - 1}
    assert places == sorted(places)
    assert must_stay <= set(places)
    assert num_dropped == len(gone)
    assert num_tokens(kept) <= max_tokens or set(places) == must_stay
    # The oldest go first, and no question stays without those answers that are not the last.
    droppable = [i for i in range(len(placed)) if i not in must_stay]
    assert gone == set(droppable[: len(gone)])
    left = droppable[len(gone) :]
    assert not gone or not left or placed[left[0]]["role"] == "user"


@given(messages, st.integers(0, 80))
def test_no_more_is_dropped_than_must_be(history: list[ChatMessage], max_tokens: int) -> None:
    kept, _ = drop_oldest_turns(history, max_tokens, num_tokens)
    roomier, _ = drop_oldest_turns(history, int(num_tokens(kept)), num_tokens)
    assert roomier == kept


def test_of_a_long_history_little_more_is_counted_than_what_fits() -> None:
    history = [message("user", "xxxx") for _ in range(10_001)]
    counted: list[int] = []

    def count(messages: list[ChatMessage]) -> int:
        counted.append(len(messages))
        return num_tokens(messages)

    kept, _ = drop_oldest_turns(history, 100, count)
    assert len(kept) == 25
    assert sum(counted) - len(history) < 10 * len(kept)


def test_room_for_the_answer_is_made_where_that_is_possible() -> None:
    window = num_tokens(HISTORY) + 1
    assert fit(HISTORY, window, 1, num_tokens) == (HISTORY, 0)
    kept, num_dropped = fit(HISTORY, window, 2, num_tokens)
    assert num_dropped > 0
    assert num_tokens(kept) <= window - 2


def test_nothing_is_dropped_where_that_is_no_use() -> None:
    fixed, _ = drop_oldest_turns(HISTORY, 0, num_tokens)
    # All of it fits, and no drop leaves the room that the answer should have.
    window = num_tokens(HISTORY) + 1
    assert fit(HISTORY, window, window, num_tokens) == (HISTORY, 0)
    # Not even what has to stay fits.
    assert fit(HISTORY, num_tokens(fixed), 1, num_tokens) == (HISTORY, 0)
