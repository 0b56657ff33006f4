"""Queue entries, byte by byte."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.hardware.nvme.data_pointers import SGL_DESCRIPTOR_SIZE, SglDescriptor, SglType
from vfio_user.hardware.nvme.entries import (
    COMPLETION_ENTRY_SIZE,
    SUBMISSION_ENTRY_SIZE,
    CompletionEntry,
    DataPointerType,
    Fused,
    SubmissionEntry,
)
from vfio_user.hardware.nvme.opcodes import AdminOpcode, DataDirection, NvmOpcode, data_direction
from vfio_user.hardware.nvme.status import Status, StatusCodeType, status_text

DWORDS = st.integers(0, 0xFFFF_FFFF)


def test_every_field_of_a_submission_entry_is_where_the_specification_has_it() -> None:
    dwords = [0x1234_4102, 7, 0x22, 0x33, 0x44, 0x55, 0x66, 0x67, 0x88, 0x89, 0xA0, 0xB0, 0x4000_00C0, 0xD0, 0xE0, 0xF0]
    entry = SubmissionEntry.unpack(struct.pack("<16I", *dwords))
    assert entry == SubmissionEntry(
        2, 0x41, 0x1234, 7, 0x22, 0x33, 0x55 << 32 | 0x44, 0x67 << 32 | 0x66, 0x89 << 32 | 0x88,
        0xA0, 0xB0, 0x4000_00C0, 0xD0, 0xE0, 0xF0,
    )  # fmt: skip
    assert entry.fused is Fused.FIRST
    assert entry.data_pointer_type is DataPointerType.SGL_CONTIGUOUS_METADATA
    assert entry.slba == 0xB0 << 32 | 0xA0
    assert entry.block_count == 0xC1
    assert entry.fua
    assert len(entry.pack()) == SUBMISSION_ENTRY_SIZE == 64


def test_every_field_of_a_completion_entry_is_where_the_specification_has_it() -> None:
    entry = CompletionEntry.unpack(struct.pack("<4I", 0xD0, 0xD1, 0x0003_0102, 0xC503_0BAD))
    assert entry == CompletionEntry(0xD0, 0xD1, 0x0102, 3, 0x0BAD, 0xC503)
    assert (entry.phase, entry.status, entry.more, entry.do_not_retry) == (1, Status.UNRECOVERED_READ_ERROR, True, True)
    assert len(entry.pack()) == COMPLETION_ENTRY_SIZE == 16


@given(st.binary(min_size=64, max_size=64))
def test_a_submission_entry_packs_to_what_it_was_unpacked_from(data: bytes) -> None:
    assert SubmissionEntry.unpack(b"x" + data, 1).pack() == data


@given(st.binary(min_size=16, max_size=16))
def test_a_completion_entry_packs_to_what_it_was_unpacked_from(data: bytes) -> None:
    assert CompletionEntry.unpack(data).pack() == data


@pytest.mark.parametrize("kind", [SubmissionEntry, CompletionEntry])
def test_too_few_bytes_are_no_entry(kind: type[SubmissionEntry | CompletionEntry]) -> None:
    with pytest.raises(struct.error):
        kind.unpack(b"\0" * 15)


def test_an_sgl_descriptor() -> None:
    descriptor = SglDescriptor(0x1122_3344_5566_7788, 0x1000, SglType.LAST_SEGMENT, 5)
    assert descriptor.pack() == bytes.fromhex("8877665544332211 00100000 000000 35")
    assert len(descriptor.pack()) == SGL_DESCRIPTOR_SIZE
    assert SglDescriptor.unpack(b"x" + descriptor.pack(), 1) == descriptor
    assert SglDescriptor.from_entry(*descriptor.to_entry()) == descriptor
    first, second = descriptor.to_entry()
    assert SubmissionEntry(1, prp1=first, prp2=second).pack()[24:40] == descriptor.pack()


def test_the_opcode_says_which_way_data_goes() -> None:
    assert data_direction(NvmOpcode.WRITE) is DataDirection.HOST_TO_CONTROLLER
    assert data_direction(NvmOpcode.READ) is DataDirection.CONTROLLER_TO_HOST
    assert data_direction(NvmOpcode.FLUSH) is DataDirection.NONE
    assert data_direction(AdminOpcode.IDENTIFY) is DataDirection.CONTROLLER_TO_HOST


def test_status_codes() -> None:
    assert Status.INVALID_QUEUE_IDENTIFIER.code_type is StatusCodeType.COMMAND_SPECIFIC
    assert status_text(0x4281) == "UNRECOVERED_READ_ERROR"
    assert status_text(0x7C1) == "status code type 7, code 0xc1"
