"""What a SCRIPTS processor can wait for."""

from __future__ import annotations

from enum import Enum

__all__ = ["Waiting"]


class Waiting(Enum):
    """What the processor waits for."""

    NOTHING = "nothing"
    PHASE = "phase"
    MOVE = "block move"
    RESELECT = "reselect"
    DISCONNECT = "disconnect"

    @property
    def is_handshake(self) -> bool:
        """A target is connected, and is to go on: what the handshake timer watches."""
        return self is Waiting.PHASE or self is Waiting.MOVE
