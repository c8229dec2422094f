"""uvicorn's WebSocket protocol, with a door for frames that are the same for many sockets.

Give it to uvicorn with `--ws sopllm.websocket_protocol:FramesProtocol`.
"""

from typing import Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request
from websockets.protocol import State

from monitoring.events.frames import EXTENSION


class FramesProtocol(WebSocketsSansIOProtocol):
    """One connection, with the ASGI extension `websocket.frames`: whole frames, one or several.

    Its `write` writes them at once, and is False, with nothing written, for a connection that is
    closing or whose client reads too slowly. The message of that type, with `frames`, waits for the
    client. Not there with permessage-deflate, which makes each connection's frames its own.
    """

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.response.status_code == 101 and not self.config.ws_per_message_deflate:
            # The application starts with the loop's next turn.
            scope: Any = self.scope  # typed without what others add
            scope["extensions"][EXTENSION] = {"write": self._write_now}

    async def send(self, message: Any) -> None:
        if message["type"] != EXTENSION:
            await super().send(message)
            return
        await self.writable.wait()
        if not self._write(message["frames"]):
            raise ClientDisconnected

    def _write_now(self, frames: bytes) -> bool:
        return self.writable.is_set() and self._write(frames)

    def _write(self, frames: bytes) -> bool:
        if self.conn.state is not State.OPEN or self.transport.is_closing():
            return False
        self.transport.write(frames)
        return True
