"""Every illegal command has its status; nothing a host submits or rings crashes or hangs the controller."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.nvme import Bench, bench
from vfio_user.devices.nvme import DoorbellMode
from vfio_user.devices.nvme.engines import make_engine
from vfio_user.hardware.nvme.data_pointers import SglDescriptor, SglType
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.features import Feature
from vfio_user.hardware.nvme.identify import IdentifyNamespace, controller_list
from vfio_user.hardware.nvme.logs import AsyncEventType, ErrorEvent, LogPage
from vfio_user.hardware.nvme.opcodes import AdminOpcode, NvmOpcode
from vfio_user.hardware.nvme.registers import DOORBELLS, DOORBELLS_OFFSET
from vfio_user.hardware.nvme.status import Status

#: For each way of ringing and each engine; ``NVME_FUZZ_EXAMPLES=5000`` for a long run.
FUZZ_EXAMPLES = int(os.environ.get("NVME_FUZZ_EXAMPLES", "20"))

A, N, S = AdminOpcode, NvmOpcode, Status
E = SubmissionEntry
PAGE = 4096
NOWHERE = 0x7777_0000_0000
ALL = 0xFFFF_FFFF


@pytest.fixture(scope="module")
def nvme() -> Iterator[Bench]:
    """With namespace 1 of 2048 blocks, 1 MiB of unallocated capacity, I/O queue 1."""
    with bench(unallocated="memory:1M") as made:
        yield made


def completion_queue(qid: int, entries: int, *, vector: int = 0, flags: int = 3, prp1: int = PAGE) -> E:
    return E(A.CREATE_IO_COMPLETION_QUEUE, cdw10=qid | entries - 1 << 16, cdw11=vector << 16 | flags, prp1=prp1)


def submission_queue(qid: int, entries: int, *, cqid: int = 1, flags: int = 1, prp1: int = PAGE) -> E:
    return E(A.CREATE_IO_SUBMISSION_QUEUE, cdw10=qid | entries - 1 << 16, cdw11=cqid << 16 | flags, prp1=prp1)


def log(page: int, dwords: int = 1, **fields: int) -> E:
    return E(A.GET_LOG_PAGE, nsid=fields.pop("nsid", ALL), cdw10=page | dwords - 1 << 16, **fields)


ADMIN = [
    # Fields all commands have.
    (E(0x7F), S.INVALID_COMMAND_OPCODE),
    (E(0xFF), S.INVALID_COMMAND_OPCODE),
    (E(A.DOORBELL_BUFFER_CONFIG), S.INVALID_COMMAND_OPCODE),
    (E(A.IDENTIFY, flags=1, cdw10=1), S.INVALID_FIELD),
    (E(A.IDENTIFY, flags=0x40, cdw10=1), S.INVALID_FIELD),
    # Data pointers.
    (E(A.IDENTIFY, cdw10=1, prp1=1), S.PRP_OFFSET_INVALID),
    (E(A.IDENTIFY, cdw10=1, prp1=PAGE + 8, prp2=PAGE + 8), S.PRP_OFFSET_INVALID),
    (E(A.IDENTIFY, cdw10=1, prp1=NOWHERE), S.DATA_TRANSFER_ERROR),
    (E(A.IDENTIFY, cdw10=1, prp1=(1 << 64) - PAGE), S.DATA_TRANSFER_ERROR),
    # Identify.
    (E(A.IDENTIFY, cdw10=0xFF), S.INVALID_FIELD),
    (E(A.IDENTIFY, cdw10=0x00, nsid=0), S.INVALID_NAMESPACE_OR_FORMAT),
    (E(A.IDENTIFY, cdw10=0x00, nsid=257), S.INVALID_NAMESPACE_OR_FORMAT),
    (E(A.IDENTIFY, cdw10=0x02, nsid=ALL), S.INVALID_NAMESPACE_OR_FORMAT),
    (E(A.IDENTIFY, cdw10=0x02, nsid=ALL - 1), S.INVALID_NAMESPACE_OR_FORMAT),
    (E(A.IDENTIFY, cdw10=0x03, nsid=2), S.INVALID_FIELD),
    (E(A.IDENTIFY, cdw10=0x03, nsid=0), S.INVALID_NAMESPACE_OR_FORMAT),
    (E(A.IDENTIFY, cdw10=0x05, nsid=1, cdw11=2 << 24), S.INVALID_FIELD),
    (E(A.IDENTIFY, cdw10=0x12, nsid=ALL), S.INVALID_FIELD),
    (E(A.IDENTIFY, cdw10=0x1C | 7 << 16), S.INVALID_FIELD),
    # Queues.
    (completion_queue(0, 16), S.INVALID_QUEUE_IDENTIFIER),
    (completion_queue(1, 16), S.INVALID_QUEUE_IDENTIFIER),
    (completion_queue(65, 16), S.INVALID_QUEUE_IDENTIFIER),
    (completion_queue(2, 1), S.INVALID_QUEUE_SIZE),
    (completion_queue(2, 1025), S.INVALID_QUEUE_SIZE),
    (completion_queue(2, 16, flags=2), S.INVALID_FIELD),
    (completion_queue(2, 16, vector=65), S.INVALID_INTERRUPT_VECTOR),
    (completion_queue(2, 16, prp1=PAGE + 4), S.PRP_OFFSET_INVALID),
    (submission_queue(0, 16), S.INVALID_QUEUE_IDENTIFIER),
    (submission_queue(1, 16), S.INVALID_QUEUE_IDENTIFIER),
    (submission_queue(65, 16), S.INVALID_QUEUE_IDENTIFIER),
    (submission_queue(2, 1), S.INVALID_QUEUE_SIZE),
    (submission_queue(2, 1025), S.INVALID_QUEUE_SIZE),
    (submission_queue(2, 16, flags=0), S.INVALID_FIELD),
    (submission_queue(2, 16, cqid=0), S.INVALID_QUEUE_IDENTIFIER),
    (submission_queue(2, 16, cqid=65), S.INVALID_QUEUE_IDENTIFIER),
    (submission_queue(2, 16, cqid=2), S.COMPLETION_QUEUE_INVALID),
    (submission_queue(2, 16, prp1=PAGE - 1), S.PRP_OFFSET_INVALID),
    (E(A.DELETE_IO_COMPLETION_QUEUE, cdw10=0), S.INVALID_QUEUE_IDENTIFIER),
    (E(A.DELETE_IO_COMPLETION_QUEUE, cdw10=1), S.INVALID_QUEUE_DELETION),
    (E(A.DELETE_IO_COMPLETION_QUEUE, cdw10=2), S.INVALID_QUEUE_IDENTIFIER),
    (E(A.DELETE_IO_SUBMISSION_QUEUE, cdw10=0), S.INVALID_QUEUE_IDENTIFIER),
    (E(A.DELETE_IO_SUBMISSION_QUEUE, cdw10=2), S.INVALID_QUEUE_IDENTIFIER),
    # Features.
    (E(A.GET_FEATURES, cdw10=0x55), S.INVALID_FIELD),
    (E(A.GET_FEATURES, cdw10=0), S.INVALID_FIELD),
    (E(A.GET_FEATURES, cdw10=Feature.ARBITRATION | 4 << 8), S.INVALID_FIELD),
    (E(A.GET_FEATURES, cdw10=Feature.INTERRUPT_VECTOR_CONFIGURATION, cdw11=65), S.INVALID_FIELD),
    (E(A.GET_FEATURES, cdw10=Feature.TEMPERATURE_THRESHOLD, cdw11=3 << 16), S.INVALID_FIELD),
    (E(A.GET_FEATURES, cdw10=Feature.ERROR_RECOVERY, nsid=7), S.INVALID_FIELD),
    (E(A.SET_FEATURES, cdw10=0x55), S.INVALID_FIELD),
    (E(A.SET_FEATURES, cdw10=Feature.NUMBER_OF_QUEUES), S.COMMAND_SEQUENCE_ERROR),
    (E(A.SET_FEATURES, cdw10=Feature.NUMBER_OF_QUEUES | 1 << 31), S.FEATURE_IDENTIFIER_NOT_SAVEABLE),
    (E(A.SET_FEATURES, cdw10=Feature.POWER_MANAGEMENT, cdw11=1), S.INVALID_FIELD),
    (E(A.SET_FEATURES, cdw10=Feature.VOLATILE_WRITE_CACHE, cdw11=2), S.INVALID_FIELD),
    (E(A.SET_FEATURES, cdw10=Feature.VOLATILE_WRITE_CACHE, nsid=1), S.FEATURE_NOT_NAMESPACE_SPECIFIC),
    (E(A.SET_FEATURES, cdw10=Feature.VOLATILE_WRITE_CACHE, nsid=9), S.INVALID_FIELD),
    (E(A.SET_FEATURES, cdw10=Feature.ERROR_RECOVERY, nsid=1, cdw11=1 << 16), S.INVALID_FIELD),
    (E(A.SET_FEATURES, cdw10=Feature.INTERRUPT_VECTOR_CONFIGURATION, cdw11=65), S.INVALID_FIELD),
    # Log pages.
    (log(0x7F), S.INVALID_LOG_PAGE),
    (log(LogPage.SMART, cdw12=2), S.INVALID_FIELD),
    (log(LogPage.SMART, cdw12=516), S.INVALID_FIELD),
    (log(LogPage.SMART, cdw13=1), S.INVALID_FIELD),
    (log(LogPage.SMART, cdw11=0xFFFF), S.INVALID_FIELD),
    (log(LogPage.SMART, nsid=1), S.INVALID_FIELD),
    (log(LogPage.SMART, nsid=300), S.INVALID_NAMESPACE_OR_FORMAT),
    (log(LogPage.COMMANDS_SUPPORTED_AND_EFFECTS, cdw14=2 << 24), S.INVALID_FIELD),
    # Namespaces.
    (E(A.NAMESPACE_MANAGEMENT, cdw10=2), S.INVALID_FIELD),
    (E(A.NAMESPACE_MANAGEMENT, cdw10=1, nsid=1), S.OPERATION_DENIED),
    (E(A.NAMESPACE_MANAGEMENT, cdw10=1, nsid=2), S.INVALID_FIELD),
    (E(A.NAMESPACE_MANAGEMENT, cdw10=1, nsid=0), S.INVALID_NAMESPACE_OR_FORMAT),
    (E(A.NAMESPACE_MANAGEMENT, cdw11=1 << 24), S.IO_COMMAND_SET_NOT_SUPPORTED),
    (E(A.NAMESPACE_ATTACHMENT, cdw10=2, nsid=1), S.INVALID_FIELD),
    (E(A.NAMESPACE_ATTACHMENT, nsid=2), S.INVALID_FIELD),
    (E(A.FORMAT_NVM, nsid=1, cdw10=2), S.INVALID_FORMAT),
    (E(A.FORMAT_NVM, nsid=1, cdw10=1 << 5), S.INVALID_FORMAT),
    (E(A.FORMAT_NVM, nsid=1, cdw10=2 << 9), S.INVALID_FIELD),
    (E(A.FORMAT_NVM, nsid=2), S.INVALID_FIELD),
    (E(A.FORMAT_NVM, nsid=0), S.INVALID_NAMESPACE_OR_FORMAT),
    # Firmware, self-test.
    (E(A.FIRMWARE_COMMIT, cdw10=4), S.INVALID_FIRMWARE_SLOT),
    (E(A.FIRMWARE_COMMIT, cdw10=1 | 4 << 3), S.INVALID_FIELD),
    (E(A.FIRMWARE_COMMIT, cdw10=2), S.INVALID_FIRMWARE_IMAGE),
    (E(A.FIRMWARE_COMMIT, cdw10=2 | 2 << 3), S.INVALID_FIRMWARE_IMAGE),
    (E(A.FIRMWARE_IMAGE_DOWNLOAD, cdw10=0x0FFF_FFFF), S.INVALID_FIELD),
    (E(A.DEVICE_SELF_TEST, cdw10=3), S.INVALID_FIELD),
    (E(A.DEVICE_SELF_TEST, cdw10=1, nsid=5), S.INVALID_FIELD),
]


@pytest.mark.parametrize(("entry", "status"), ADMIN, ids=lambda value: repr(value)[:60])
def test_illegal_admin_commands(nvme: Bench, entry: E, status: Status) -> None:
    before = nvme.device.health.errors
    assert nvme.status(entry, admin=True) == status
    assert nvme.device.health.errors == before + 1
    assert nvme.device.health.error_log[0].status_field >> 1 & 0x7FF == status


def namespace(**fields: int) -> bytes:
    return IdentifyNamespace(**fields).pack()


@pytest.mark.parametrize(
    ("entry", "data", "status"),
    [
        (E(A.NAMESPACE_MANAGEMENT), namespace(nsze=8, ncap=8, flbas=2), S.INVALID_FORMAT),
        (E(A.NAMESPACE_MANAGEMENT), namespace(nsze=8, ncap=8, dps=1), S.INVALID_FORMAT),
        (E(A.NAMESPACE_MANAGEMENT), namespace(nsze=8, ncap=4), S.THIN_PROVISIONING_NOT_SUPPORTED),
        (E(A.NAMESPACE_MANAGEMENT), namespace(nsze=8, ncap=8, nmic=2), S.INVALID_FIELD),
        (E(A.NAMESPACE_MANAGEMENT), namespace(), S.INVALID_FIELD),
        (E(A.NAMESPACE_MANAGEMENT), namespace(nsze=2049, ncap=2049), S.NAMESPACE_INSUFFICIENT_CAPACITY),
        (E(A.NAMESPACE_MANAGEMENT), namespace(nsze=1 << 63, ncap=1 << 63), S.NAMESPACE_INSUFFICIENT_CAPACITY),
        (E(A.NAMESPACE_ATTACHMENT, nsid=1), controller_list([1]), S.NAMESPACE_ALREADY_ATTACHED),
        (E(A.NAMESPACE_ATTACHMENT, nsid=1), controller_list([2]), S.CONTROLLER_LIST_INVALID),
        (E(A.NAMESPACE_ATTACHMENT, nsid=1), controller_list([]), S.CONTROLLER_LIST_INVALID),
        (E(A.NAMESPACE_ATTACHMENT, nsid=1), b"\xff" * 4096, S.CONTROLLER_LIST_INVALID),
    ],
)
def test_illegal_data_of_admin_commands(nvme: Bench, entry: E, data: bytes, status: Status) -> None:
    assert nvme.status(entry, admin=True, data=data) == status


def io(opcode: int, slba: int = 0, blocks: int = 1, **fields: int) -> E:
    return E(opcode, nsid=fields.pop("nsid", 1), cdw10=slba & ALL, cdw11=slba >> 32, cdw12=blocks - 1, **fields)


def sgl(*fields: int, flags: int = 0x40) -> E:
    prp1, prp2 = SglDescriptor(*fields).to_entry()
    return io(N.READ, prp1=prp1, prp2=prp2, flags=flags)


NVM = [
    (E(0x77, nsid=1), S.INVALID_COMMAND_OPCODE),
    (io(N.READ, nsid=0), S.INVALID_NAMESPACE_OR_FORMAT),
    (io(N.READ, nsid=2), S.INVALID_FIELD),
    (io(N.READ, nsid=257), S.INVALID_NAMESPACE_OR_FORMAT),
    (io(N.READ, nsid=ALL), S.INVALID_NAMESPACE_OR_FORMAT),
    (io(N.FLUSH, nsid=2), S.INVALID_FIELD),
    (io(N.FLUSH, nsid=0), S.INVALID_NAMESPACE_OR_FORMAT),
    *((io(opcode, 2048), S.LBA_OUT_OF_RANGE) for opcode in (N.READ, N.WRITE, N.COMPARE, N.VERIFY)),
    *((io(opcode, 2048), S.LBA_OUT_OF_RANGE) for opcode in (N.WRITE_ZEROES, N.WRITE_UNCORRECTABLE)),
    *((io(opcode, 2047, 2), S.LBA_OUT_OF_RANGE) for opcode in (N.READ, N.WRITE, N.COMPARE, N.VERIFY)),
    (io(N.READ, (1 << 64) - 1, 2), S.LBA_OUT_OF_RANGE),
    (io(N.READ, 0, 1025), S.INVALID_FIELD),  # longer than MDTS
    (io(N.WRITE, 0, 0x10000), S.INVALID_FIELD),
    (io(N.READ, flags=0xC0), S.INVALID_FIELD),
    (io(N.READ, prp1=2), S.PRP_OFFSET_INVALID),
    (io(N.WRITE, prp1=1), S.PRP_OFFSET_INVALID),
    (io(N.READ, prp1=NOWHERE), S.DATA_TRANSFER_ERROR),
    (io(N.WRITE, prp1=NOWHERE), S.DATA_TRANSFER_ERROR),
    (io(N.READ, 0, 16, prp1=PAGE, prp2=4), S.PRP_OFFSET_INVALID),
    (io(N.READ, 0, 17, prp1=PAGE, prp2=4), S.PRP_OFFSET_INVALID),
    (io(N.READ, 0, 17, prp1=PAGE, prp2=NOWHERE), S.DATA_TRANSFER_ERROR),
    (sgl(PAGE, 511), S.DATA_SGL_LENGTH_INVALID),
    (sgl(PAGE, 512, SglType.DATA_BLOCK, 1), S.SGL_DESCRIPTOR_TYPE_INVALID),
    (sgl(PAGE, 512, SglType.KEYED_DATA_BLOCK), S.SGL_DESCRIPTOR_TYPE_INVALID),
    (sgl(PAGE, 512, 9), S.SGL_DESCRIPTOR_TYPE_INVALID),
    (sgl(PAGE, 0, SglType.SEGMENT), S.INVALID_SGL_SEGMENT_DESCRIPTOR),
    (sgl(PAGE, 17, SglType.LAST_SEGMENT), S.INVALID_SGL_SEGMENT_DESCRIPTOR),
    (sgl(PAGE, 1 << 20, SglType.LAST_SEGMENT), S.INVALID_NUMBER_OF_SGL_DESCRIPTORS),
    (sgl(NOWHERE, 16, SglType.LAST_SEGMENT), S.DATA_TRANSFER_ERROR),
    (sgl(NOWHERE, 512), S.DATA_TRANSFER_ERROR),
    (E(N.COPY, nsid=1, cdw12=1 << 8), S.INVALID_FIELD),
    (E(N.COPY, nsid=1, cdw12=128), S.COMMAND_SIZE_LIMIT_EXCEEDED),
    (E(N.DATASET_MANAGEMENT, nsid=1, cdw11=4, prp1=NOWHERE), S.DATA_TRANSFER_ERROR),
]


@pytest.mark.parametrize(("entry", "status"), NVM, ids=lambda value: repr(value)[:60])
def test_illegal_io_commands(nvme: Bench, entry: E, status: Status) -> None:
    assert nvme.status(entry) == status


@pytest.mark.parametrize(
    ("entry", "data", "status"),
    [
        (E(N.DATASET_MANAGEMENT, nsid=1, cdw11=4), struct.pack("<IIQ", 0, 1, 2048), S.LBA_OUT_OF_RANGE),
        (E(N.DATASET_MANAGEMENT, nsid=1, cdw11=4), struct.pack("<IIQ", 0, ALL, 1), S.LBA_OUT_OF_RANGE),
        (E(N.COPY, nsid=1), struct.pack("<8xQH14x", 0, 1024), S.COMMAND_SIZE_LIMIT_EXCEEDED),
        (E(N.COPY, nsid=1), struct.pack("<8xQH14x", 2047, 1), S.LBA_OUT_OF_RANGE),
        (E(N.COPY, nsid=1, cdw10=2048), struct.pack("<8xQH14x", 0, 0), S.LBA_OUT_OF_RANGE),
    ],
)
def test_illegal_data_of_io_commands(nvme: Bench, entry: E, data: bytes, status: Status) -> None:
    assert nvme.status(entry, data=data) == status


def test_a_list_of_segments_that_goes_in_circles(nvme: Bench) -> None:
    address = nvme.buffer(size=16)
    nvme.device.dma.write(address, SglDescriptor(address, 16, SglType.SEGMENT).pack())
    assert nvme.status(sgl(address, 16, SglType.SEGMENT)) == S.INVALID_NUMBER_OF_SGL_DESCRIPTORS


@pytest.mark.parametrize(
    ("segment", "kind"),
    [
        ([SglDescriptor(PAGE, 512)], SglType.SEGMENT),  # which has to lead on
        ([SglDescriptor(PAGE, 16, SglType.SEGMENT)], SglType.LAST_SEGMENT),  # which must not
        ([SglDescriptor(PAGE, 16, SglType.LAST_SEGMENT), SglDescriptor(PAGE, 512)], SglType.SEGMENT),
    ],
)
def test_segments_that_lead_nowhere(nvme: Bench, segment: list[SglDescriptor], kind: SglType) -> None:
    address = nvme.buffer(b"".join(descriptor.pack() for descriptor in segment))
    assert nvme.status(sgl(address, 16 * len(segment), kind)) == S.INVALID_SGL_SEGMENT_DESCRIPTOR


@pytest.mark.parametrize(
    ("doorbell", "value", "event"),
    [
        (2, 16, ErrorEvent.INVALID_DOORBELL_VALUE),
        (2, 0xFFFF_FFFF, ErrorEvent.INVALID_DOORBELL_VALUE),
        (3, 16, ErrorEvent.INVALID_DOORBELL_VALUE),
        (3, 1, ErrorEvent.INVALID_DOORBELL_VALUE),  # a completion that was never posted
        (4, 0, ErrorEvent.INVALID_DOORBELL_REGISTER),
        (5, 0, ErrorEvent.INVALID_DOORBELL_REGISTER),
        (DOORBELLS - 1, 1, ErrorEvent.INVALID_DOORBELL_REGISTER),
    ],
)
def test_bad_doorbells_are_told_as_events(doorbell: int, value: int, event: ErrorEvent) -> None:
    with bench() as nvme:
        admin = nvme.driver.admin_queue
        cids = admin.submit(E(A.ASYNCHRONOUS_EVENT_REQUEST))
        nvme.function.bar0.write(DOORBELLS_OFFSET + 4 * doorbell, 4, value)
        [completion] = admin.wait(cids)
        assert completion.dw0 == AsyncEventType.ERROR | event << 8 | LogPage.ERROR_INFORMATION << 16
        nvme.driver.write(nvme.queue, 0, bytes(512))  # it goes on


def test_bad_doorbells_are_told_once_until_the_log_is_read() -> None:
    with bench() as nvme:
        admin = nvme.driver.admin_queue
        cids = admin.submit(*[E(A.ASYNCHRONOUS_EVENT_REQUEST)] * 3)
        waiting = nvme.device.events.requests
        for _ in range(3):
            nvme.function.bar0.write(DOORBELLS_OFFSET + 4 * 2, 4, 16)
        admin.wait(cids[:1])
        nvme.driver.get_log(LogPage.ERROR_INFORMATION, 64, retain=True)
        assert len(waiting) == 2
        nvme.driver.get_log(LogPage.ERROR_INFORMATION, 64)
        admin.wait(cids[1:2])
        # The second and the third say the same, so they are one.
        nvme.driver.get_log(LogPage.ERROR_INFORMATION, 64)
        nvme.under_test.settle()
        assert [command.entry.cid for command in waiting] == cids[2:]


def test_more_event_requests_than_there_may_be(nvme: Bench) -> None:
    admin = nvme.driver.admin_queue
    cids = admin.submit(*[E(A.ASYNCHRONOUS_EVENT_REQUEST)] * 9)
    [completion] = admin.wait(cids[8:])
    assert completion.status == S.ASYNCHRONOUS_EVENT_REQUEST_LIMIT_EXCEEDED
    for cid in cids[:8]:
        [aborted] = admin.wait(admin.submit(E(A.ABORT, cdw10=cid << 16)))
        assert aborted.dw0 == 0
    assert [completion.status for completion in admin.wait(cids[:8])] == [S.COMMAND_ABORT_REQUESTED] * 8
    [completion] = admin.wait(admin.submit(E(A.ABORT, cdw10=0x1234 << 16 | 1)))
    assert (completion.status, completion.dw0) == (0, 1)


# Whatever a host submits.

DWORDS = st.one_of(st.integers(0, 8), st.integers(0, ALL), st.sampled_from([0x0FFF_0001, 1 << 31, 0xFFFF]))
ADDRESSES = st.one_of(st.just(0), st.integers(0, 40).map(lambda page: page * PAGE), st.integers(0, (1 << 64) - 1))
ENTRIES = st.builds(
    E,
    st.one_of(st.sampled_from([*A, *N]), st.integers(0, 255)).map(int),
    st.sampled_from([0, 0, 0, 0, 1, 2, 3, 0x40, 0x80, 0xC0]),
    cid=st.integers(0, 0xFFFF),
    cdw2=DWORDS,
    cdw3=DWORDS,
    mptr=ADDRESSES,
    nsid=st.one_of(st.sampled_from([0, 1, 2, ALL]), DWORDS),
    prp1=ADDRESSES,
    prp2=ADDRESSES,
    cdw10=DWORDS,
    cdw11=DWORDS,
    cdw12=DWORDS,
    cdw13=DWORDS,
    cdw14=DWORDS,
    cdw15=DWORDS,
)


def transfer(opcode: int, **fields: int) -> E:
    """A command; of its own accord Hypothesis gives fields that are not named numbers they cannot hold."""
    return E(opcode, **fields)


TRANSFERS = st.builds(
    transfer,
    st.sampled_from([N.READ, N.WRITE]).map(int),
    cid=st.integers(0, 0xFFFF),
    nsid=st.sampled_from([1, 1, 1, 1, 2]),
    prp1=st.integers(0, 40).map(lambda page: (4096 + page) * PAGE),
    prp2=st.one_of(st.just(0), ADDRESSES),
    cdw10=st.one_of(st.integers(0, 15).map(lambda page: 8 * page), DWORDS),
    cdw12=st.one_of(st.just(7), st.sampled_from([0, 15, 23, 1 << 30 | 7]), DWORDS),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("admin"), st.lists(ENTRIES, min_size=1, max_size=2)),
        st.tuples(st.just("io"), st.lists(ENTRIES, min_size=1, max_size=3)),
        # Enough alike to be carried out together.
        st.tuples(st.just("io"), st.lists(TRANSFERS, min_size=4, max_size=10)),
        st.tuples(st.integers(0, 12), st.one_of(st.integers(0, 40), DWORDS)),
    ),
    max_size=12,
)


def fuzz(steps: list[tuple[object, object]], doorbells: DoorbellMode, *, vector: bool) -> None:
    """Takes the steps: commands that are submitted, with a ring, and doorbells that are written.

    Device code that raises fails the test (strict). The guest's memory is small and nearly everything a command may
    point to, so the host's own queues are overwritten, too: what the host then finds there is its own affair.
    """
    with bench(image="memory:64K", unallocated="memory:1M", vectors=0, doorbells=doorbells) as nvme:
        nvme.device.engine = make_engine(nvme.device, vector=vector)
        if doorbells is DoorbellMode.SHADOW:
            nvme.driver.use_shadow_doorbells()
        for place, what in steps:
            if isinstance(what, list):
                queue = nvme.driver.admin_queue if place == "admin" else nvme.queue
                for entry in what:
                    queue.put(entry)
                queue.ring()
            else:
                nvme.function.bar0.write(DOORBELLS_OFFSET + 4 * int(str(place)), 4, int(str(what)))
            nvme.under_test.advance(0.1)  # mapped doorbells are looked at some time
        nvme.under_test.advance(30)
        # After a reset it is as new.
        nvme.driver.disable()
        nvme.driver.enable()
        assert nvme.driver.identify_controller().sn == "vfio-user-1"


@pytest.mark.parametrize("vector", [False, True], ids=["scalar", "vector"])
@pytest.mark.parametrize("doorbells", DoorbellMode)
@settings(max_examples=FUZZ_EXAMPLES)
@given(STEPS)
def test_whatever_a_host_submits_and_rings(
    doorbells: DoorbellMode, vector: bool, steps: list[tuple[object, object]]
) -> None:
    fuzz(steps, doorbells, vector=vector)
