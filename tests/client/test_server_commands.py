"""A server's commands, without a connection; ``test_connection`` has them over the wire."""

from __future__ import annotations

import errno
import logging
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.client.scripted import message
from vfio_user.client.server_commands import ServerCommands
from vfio_user.errors import DmaAccess
from vfio_user.protocol.constants import Command
from vfio_user.protocol.header import Header


class Memory:
    """Sixteen bytes at 0, and trouble beyond."""

    def __init__(self) -> None:
        self.data = bytearray(16)

    def read(self, iova: int, count: int) -> bytes:
        if iova >= 16:
            raise DmaAccess
        return bytes(self.data[iova : iova + count])

    def write(self, iova: int, data: bytes) -> None:
        if iova >= 16:
            raise RuntimeError("a bug of the test's memory")
        self.data[iova : iova + len(data)] = data


def ask(command: int, payload: bytes, fds: list[int] | None = None, memory: Memory | None = None) -> tuple[int, bytes]:
    header = Header.decode(message(3, command, payload, flags=0))
    reply = ServerCommands(memory, 8).carry_out(header, payload, fds or [])
    assert reply is not None
    answered = Header.decode(reply)
    assert (answered.message_id, answered.command, answered.message_size) == (3, command, len(reply))
    assert answered.is_reply
    assert answered.is_error == bool(answered.error)
    return answered.error, reply[16:]


def test_read_and_write() -> None:
    memory = Memory()
    assert ask(Command.DMA_WRITE, struct.pack("<QQ", 2, 3) + b"abc", memory=memory) == (0, struct.pack("<QQ", 2, 3))
    assert ask(Command.DMA_READ, struct.pack("<QQ", 1, 5), memory=memory) == (
        0,
        struct.pack("<QQ", 1, 5) + b"\0abc\0",
    )


def test_the_limit_is_the_largest_transfer() -> None:
    assert ask(Command.DMA_READ, struct.pack("<QQ", 0, 8), memory=Memory())[0] == 0
    assert ask(Command.DMA_READ, struct.pack("<QQ", 0, 9), memory=Memory())[0] == errno.E2BIG
    assert ask(Command.DMA_WRITE, struct.pack("<QQ", 0, 9) + bytes(9), memory=Memory())[0] == errno.E2BIG


def test_no_memory() -> None:
    assert ask(Command.DMA_READ, struct.pack("<QQ", 0, 1))[0] == errno.ENODEV


def test_what_the_memory_says_is_what_the_server_gets(caplog: pytest.LogCaptureFixture) -> None:
    assert ask(Command.DMA_READ, struct.pack("<QQ", 16, 1), memory=Memory())[0] == errno.EACCES
    assert not caplog.records
    assert ask(Command.DMA_WRITE, struct.pack("<QQ", 16, 1) + b"a", memory=Memory())[0] == errno.EIO
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "DMA_WRITE of the server failed in this program" in caplog.text


def test_descriptors_and_strangers() -> None:
    assert ask(Command.DMA_READ, struct.pack("<QQ", 0, 1), fds=[1], memory=Memory())[0] == errno.EINVAL
    assert ask(Command.VERSION, b"", memory=Memory())[0] == errno.ENOSYS


@given(st.integers(0, 30), st.binary(max_size=40))
def test_anything(command: int, payload: bytes) -> None:
    ask(command, payload, memory=Memory())
