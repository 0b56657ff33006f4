"""What a target makes of messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.devices.lsi53c8xx.messages import read_messages
from vfio_user.hardware.lsi53c8xx.messages import Message
from vfio_user.hardware.scsi.codes import TaskAttribute


@pytest.mark.parametrize(
    ("text", "lun", "may_disconnect"), [("80", 0, False), ("c0", 0, True), ("c5", 5, True), ("bf", 63, False)]
)
def test_identify(text: str, lun: int, may_disconnect: bool) -> None:
    said = read_messages(bytes.fromhex(text))
    assert (said.lun, said.may_disconnect, said.tag) == (lun, may_disconnect, None)
    assert (bytes(said.answers), said.end) == (b"", None)


@pytest.mark.parametrize(
    ("code", "attribute"),
    [(0x20, TaskAttribute.SIMPLE), (0x21, TaskAttribute.HEAD_OF_QUEUE), (0x22, TaskAttribute.ORDERED)],
)
def test_queue_tags(code: int, attribute: TaskAttribute) -> None:
    said = read_messages(bytes([0xC0, code, 0x99]))
    assert (said.lun, said.tag, said.attribute) == (0, 0x99, attribute)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("01 03 01 0c 10", "01 03 01 0c 10"),  # synchronous, as asked for
        ("01 03 01 09 3f", "01 03 01 0a 1f"),  # faster and longer than can be
        ("01 03 01 32 00", "01 03 01 32 00"),  # asynchronous
        ("01 02 03 01", "01 02 03 01"),  # wide
        ("01 02 03 02", "01 02 03 01"),  # 32 bits: 16
        ("01 06 04 09 00 3e 01 02", "01 06 04 0a 00 1f 01 00"),  # dual edges: no
        ("01 06 04 0a 00 1f 00 00", "01 06 04 0a 00 1f 00 00"),
        ("01 02 01 0c", "07"),  # too short for what it is
        ("01 05 00 01 02 03 04", "07"),  # MODIFY DATA POINTERS, which is a target's
        ("01", "07"),
        ("01 03 01", "07"),
        ("20", "07"),  # a tag without its number
        ("10", "07"),
        ("23 01", "07"),
    ],
)
def test_answers(text: str, answer: str) -> None:
    said = read_messages(b"\xc0" + bytes.fromhex(text))
    assert said.lun == 0
    assert said.answers == bytes.fromhex(answer)


def test_messages_after_a_negotiation_are_heard() -> None:
    said = read_messages(bytes.fromhex("c0 20 05 01 02 03 01 01 03 01 0c 10"))
    assert said.tag == 5
    assert said.answers == bytes.fromhex("01 02 03 01 01 03 01 0c 10")


@pytest.mark.parametrize("code", [0x05, 0x07, 0x08, 0x09])
def test_some_need_no_answer(code: int) -> None:
    said = read_messages(bytes([0x80, code, 0x20, 1]))
    assert (bytes(said.answers), said.end, said.tag) == (b"", None, 1)


@pytest.mark.parametrize("code", [0x06, 0x0C, 0x0D, 0x0E, 0x17])
def test_some_end_the_connection(code: int) -> None:
    assert read_messages(bytes([0x80, code, 0x10])).end is Message(code)
    assert read_messages(bytes([0x80, code, 0x10])).answers == b""


@given(st.binary(max_size=300))
def test_any_bytes_have_a_meaning(data: bytes) -> None:
    said = read_messages(data)
    assert said.tag is None or 0 <= said.tag < 256
    assert said.lun is None or 0 <= said.lun < 64
    assert len(said.answers) <= len(data) + 1
