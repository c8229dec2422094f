"""Fitting a history into a model's context window."""

from bisect import bisect_left
from collections.abc import Callable

from conversations.models import ChatMessage, Message


def fit(
    messages: list[ChatMessage],
    window: int,
    answer_room: int,
    count_tokens: Callable[[list[ChatMessage]], int],
) -> tuple[list[ChatMessage], int]:
    """Drop as few of the oldest turns as leave `answer_room` tokens of the window to the answer.

    Where no drop leaves so much, as few as make the rest fit at all; where none does, none. Returns
    the messages and how many were dropped.
    """
    for max_tokens in (window - answer_room, window - 1):
        kept, num_dropped = drop_oldest_turns(messages, max_tokens, count_tokens)
        if count_tokens(kept) <= max_tokens:
            return kept, num_dropped
    return messages, 0


def drop_oldest_turns(
    messages: list[ChatMessage],
    max_tokens: int,
    count_tokens: Callable[[list[ChatMessage]], int],
) -> tuple[list[ChatMessage], int]:
    """Drop as few of the oldest turns as make the rest fit `max_tokens`.

    System messages and the last message always stay, so the rest may still be too long; a question
    goes together with its answers. Returns the messages and how many were dropped.
    """
    turns = _droppable_turns(messages)

    def without(num_turns: int) -> list[ChatMessage]:
        gone = {index for turn in turns[:num_turns] for index in turn}
        return [message for index, message in enumerate(messages) if index not in gone]

    def fits(num_dropped: int) -> bool:
        return count_tokens(without(num_dropped)) <= max_tokens

    if not turns or fits(0):
        return messages, 0
    # From the newest turns on, twice as many each time: counting tokens means tokenizing all that
    # is left, and of a long history little is.
    num_kept = 1
    while num_kept < len(turns) and fits(len(turns) - num_kept):
        num_kept *= 2
    low, high = max(1, len(turns) - num_kept + 1), len(turns) - num_kept // 2
    kept = without(bisect_left(range(high), True, low, key=fits))
    return kept, len(messages) - len(kept)


def _droppable_turns(messages: list[ChatMessage]) -> list[list[int]]:
    """Indexes of each question with the answers that follow it, but for the last message.

    With the result of a tool, its question and call have to stay as well.
    """
    turns: list[list[int]] = []
    for index, message in enumerate(messages[:-1]):
        if message["role"] == Message.Role.SYSTEM:
            continue
        if not turns or message["role"] == Message.Role.USER:
            turns.append([])
        turns[-1].append(index)
    is_open = bool(messages) and messages[-1]["role"] == Message.Role.TOOL
    return turns[:-1] if is_open else turns
