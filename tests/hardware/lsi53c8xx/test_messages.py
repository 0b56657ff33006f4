"""Message codes."""

from __future__ import annotations

from vfio_user.hardware.lsi53c8xx.messages import ExtendedMessage, Message


def test_codes() -> None:
    assert [Message.DISCONNECT, Message.ABORT, Message.BUS_DEVICE_RESET, Message.ABORT_TAG] == [4, 6, 12, 13]
    assert [Message.SIMPLE_QUEUE_TAG, Message.HEAD_OF_QUEUE_TAG, Message.ORDERED_QUEUE_TAG] == [0x20, 0x21, 0x22]
    assert list(ExtendedMessage) == [1, 3, 4]
