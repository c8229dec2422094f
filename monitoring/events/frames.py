"""Texts as WebSocket frames: a server's are not masked, and so the same for all sockets."""

from collections.abc import Iterable, Iterator

# The ASGI extension, and the type of its message, by which a server takes frames.
EXTENSION = "websocket.frames"
# So many bytes of frames are written together, or one frame that is larger.
MAX_BYTES = 64 * 1024

_WHOLE_TEXT = b"\x81"


def frame(text: str) -> bytes:
    """A whole text message (RFC 6455, 5.2)."""
    payload = text.encode(errors="replace")
    size = len(payload)
    if size < 126:
        return _WHOLE_TEXT + bytes((size,)) + payload
    if size < 65536:
        return _WHOLE_TEXT + b"\x7e" + size.to_bytes(2) + payload
    return _WHOLE_TEXT + b"\x7f" + size.to_bytes(8) + payload


def text(frame: bytes) -> str:
    """What `frame` was made of."""
    start = {126: 4, 127: 10}.get(frame[1], 2)
    return frame[start:].decode()


def joined(frames: Iterable[bytes]) -> Iterator[bytes]:
    """The frames in order, in pieces of up to MAX_BYTES."""
    piece: list[bytes] = []
    num_bytes = 0
    for each in frames:
        if piece and num_bytes + len(each) > MAX_BYTES:
            yield b"".join(piece)
            piece, num_bytes = [], 0
        piece.append(each)
        num_bytes += len(each)
    if piece:
        yield b"".join(piece)
