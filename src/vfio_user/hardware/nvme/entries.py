"""The entries of submission and completion queues.

Spec: 3.3.3.1 (submission queue entry, figures 86 to 88), 3.3.3.2 (completion queue entry, figures 89 to 92).
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple, Self

__all__ = [
    "COMPLETION_ENTRY",
    "COMPLETION_ENTRY_SIZE",
    "SUBMISSION_ENTRY",
    "SUBMISSION_ENTRY_SIZE",
    "CompletionEntry",
    "DataPointerType",
    "Fused",
    "SubmissionEntry",
]

#: The layout of a submission queue entry, field by field as in ``SubmissionEntry``.
SUBMISSION_ENTRY = struct.Struct("<BBHIIIQQQ6I")
#: The layout of a completion queue entry, field by field as in ``CompletionEntry``.
COMPLETION_ENTRY = struct.Struct("<IIHHHH")

#: Bytes of a submission queue entry.
SUBMISSION_ENTRY_SIZE = 64
#: Bytes of a completion queue entry.
COMPLETION_ENTRY_SIZE = 16


class Fused(enum.IntEnum):
    """FUSE: two commands that are one operation. Spec: 3.4.2."""

    NONE = 0
    FIRST = 1
    SECOND = 2
    RESERVED = 3


class DataPointerType(enum.IntEnum):
    """PSDT: what the data pointer is made of. Spec: figure 86."""

    PRP = 0
    SGL_CONTIGUOUS_METADATA = 1
    SGL_SEGMENT_METADATA = 2
    RESERVED = 3


class SubmissionEntry(NamedTuple):
    """A command.

    Attributes:
        opcode: ``AdminOpcode`` or ``NvmOpcode``.
        flags: FUSE in bits 1:0, PSDT in bits 7:6; the others are reserved.
        cid: command identifier, the host's own.
        nsid: namespace; 0 for none, ``BROADCAST_NSID`` for all.
        cdw2: of the command.
        cdw3: of the command.
        mptr: metadata pointer.
        prp1: the first half of the data pointer, PRP entry 1.
        prp2: the second half of the data pointer, PRP entry 2.
        cdw10: of the command, as are the rest.
        cdw11: the same.
        cdw12: the same.
        cdw13: the same.
        cdw14: the same.
        cdw15: the same.
    """

    opcode: int
    flags: int = 0
    cid: int = 0
    nsid: int = 0
    cdw2: int = 0
    cdw3: int = 0
    mptr: int = 0
    prp1: int = 0
    prp2: int = 0
    cdw10: int = 0
    cdw11: int = 0
    cdw12: int = 0
    cdw13: int = 0
    cdw14: int = 0
    cdw15: int = 0

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        """Reads an entry.

        Raises:
            struct.error: fewer than 64 bytes from ``offset`` on.
        """
        return cls._make(SUBMISSION_ENTRY.unpack_from(data, offset))

    def pack(self) -> bytes:
        """The 64 bytes.

        Raises:
            struct.error: a value does not fit its field.
        """
        return SUBMISSION_ENTRY.pack(*self)

    @property
    def fused(self) -> Fused:
        """Its part in a fused operation."""
        return Fused(self.flags & 3)

    @property
    def data_pointer_type(self) -> DataPointerType:
        """What ``prp1`` and ``prp2`` are."""
        return DataPointerType(self.flags >> 6)

    @property
    def slba(self) -> int:
        """Starting LBA, where the command has one. Spec: NVM Command Set 3.2."""
        return self.cdw10 | self.cdw11 << 32

    @property
    def block_count(self) -> int:
        """Logical blocks, where the command has a number of them (NLB, which counts from 0, and this from 1)."""
        return (self.cdw12 & 0xFFFF) + 1

    @property
    def fua(self) -> bool:
        """Force unit access: the data is on the medium when the command completes. Spec: NVM Command Set 3.2.4."""
        return bool(self.cdw12 & 1 << 30)


class CompletionEntry(NamedTuple):
    """What became of a command.

    Attributes:
        dw0: the command's result.
        dw1: the command's result, second half.
        sq_head: where the controller stands in the submission queue; entries before it are the host's again.
        sq_id: which submission queue the command came from.
        cid: which command.
        status_phase: bit 0 is the phase tag, bits 15:1 the status field; see ``status``.
    """

    dw0: int = 0
    dw1: int = 0
    sq_head: int = 0
    sq_id: int = 0
    cid: int = 0
    status_phase: int = 0

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        """Reads an entry.

        Raises:
            struct.error: fewer than 16 bytes from ``offset`` on.
        """
        return cls._make(COMPLETION_ENTRY.unpack_from(data, offset))

    def pack(self) -> bytes:
        """The 16 bytes.

        Raises:
            struct.error: a value does not fit its field.
        """
        return COMPLETION_ENTRY.pack(*self)

    @property
    def phase(self) -> int:
        """Phase tag: which turn of the queue wrote the entry, 1 the first. Spec: 3.3.3.2.2."""
        return self.status_phase & 1

    @property
    def status(self) -> int:
        """Status code type and status code, as ``Status`` has them."""
        return self.status_phase >> 1 & 0x7FF

    @property
    def do_not_retry(self) -> bool:
        """DNR: the same command would fail again."""
        return bool(self.status_phase >> 15)

    @property
    def more(self) -> bool:
        """M: the error log says more."""
        return bool(self.status_phase >> 14 & 1)
