"""Every status code of the specification: a command that ends with it, or why none can."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.devices.nvme.test_illegal_commands import ADMIN, NVM, PAGE, A, E, N, S, io
from tests.support.nvme import Bench, PatientBackend, bench
from vfio_user.backends import open_backend
from vfio_user.hardware.nvme.entries import Fused, SubmissionEntry
from vfio_user.hardware.nvme.identify import IdentifyNamespace, controller_list
from vfio_user.hardware.nvme.status import Status

Case = Callable[[Bench], int]


def _last(nvme: Bench, *entries: SubmissionEntry, admin: bool = False, which: int = -1) -> int:
    """How one of several commands, submitted together, ends."""
    queue = nvme.driver.admin_queue if admin else nvme.queue
    cids = queue.submit(*entries)
    return queue.wait([cids[which]])[0].status


def _management(**fields: int) -> Case:
    page = IdentifyNamespace(**fields).pack()
    return lambda nvme: nvme.status(E(A.NAMESPACE_MANAGEMENT), admin=True, data=page)


def _attachment(*controllers: int, select: int = 0, twice: bool = False) -> Case:
    def case(nvme: Bench) -> int:
        entry = E(A.NAMESPACE_ATTACHMENT, nsid=1, cdw10=select)
        for _ in range(twice):
            nvme.status(entry, admin=True, data=controller_list(list(controllers)))
        return nvme.status(entry, admin=True, data=controller_list(list(controllers)))

    return case


def _with_backend(entry: SubmissionEntry, number: int) -> Case:
    """A command to namespace 2, whose backend fails."""

    def case(nvme: Bench) -> int:
        backend = PatientBackend(patient=False)
        backend.fails = OSError(number, "on purpose")
        nvme.device.add_namespace(backend, nsid=2)
        return nvme.status(entry._replace(nsid=2, prp1=nvme.buffer(size=512)))

    return case


def _command_id_conflict(nvme: Bench) -> int:
    admin = nvme.driver.admin_queue
    for _ in range(2):
        admin.put(E(A.ASYNCHRONOUS_EVENT_REQUEST, cid=0x123))
    admin.ring()
    return admin.wait([0x123])[0].status


def _abort_requested(nvme: Bench) -> int:
    admin = nvme.driver.admin_queue
    [cid] = admin.submit(E(A.ASYNCHRONOUS_EVENT_REQUEST))
    admin.execute(E(A.ABORT, cdw10=cid << 16))
    return admin.wait([cid])[0].status


def _deleted_queue(nvme: Bench) -> int:
    queue = nvme.driver.create_queue_pair(8, qid=2)
    cids = queue.submit(io(N.COMPARE, flags=Fused.FIRST))
    nvme.driver.admin_queue.execute(E(A.DELETE_IO_SUBMISSION_QUEUE, cdw10=2))
    return queue.wait(cids)[0].status


def _formatting(nvme: Bench) -> int:
    namespace = nvme.device.namespaces.get(1)
    assert namespace is not None
    backend = PatientBackend()
    namespace.backend = backend
    nvme.driver.admin_queue.submit(E(A.FORMAT_NVM, nsid=1))
    nvme.under_test.settle()
    status = nvme.status(io(N.READ, prp1=PAGE))
    backend.let_go()
    nvme.under_test.wait_until(lambda: nvme.device.jobs.is_idle)
    return status


def _read_only(nvme: Bench) -> int:
    file = Path(nvme.under_test.__dict__["folder"]) / "disk"
    file.write_bytes(bytes(PAGE))
    nvme.device.add_namespace(open_backend(f"file:{file}?read_only=on"), nsid=2)
    return nvme.status(io(N.WRITE, nsid=2, prp1=PAGE))


def _events(nvme: Bench) -> int:
    return _last(nvme, *[E(A.ASYNCHRONOUS_EVENT_REQUEST)] * 9, admin=True)


def _firmware(nvme: Bench) -> int:
    nvme.driver.admin(E(A.FIRMWARE_IMAGE_DOWNLOAD, cdw10=1), data=b"2.0     ")
    return nvme.status(E(A.FIRMWARE_COMMIT, cdw10=2 | 1 << 3), admin=True)


def _overlap(nvme: Bench) -> int:
    nvme.driver.admin(E(A.FIRMWARE_IMAGE_DOWNLOAD, cdw10=1), data=b"2.0     ")
    return nvme.status(E(A.FIRMWARE_IMAGE_DOWNLOAD, cdw10=1), admin=True, data=b"2.0     ")


def _all_identifiers(nvme: Bench) -> int:
    case = _management(nsze=1, ncap=1)
    for _ in range(255):
        assert case(nvme) == S.SUCCESS
    return case(nvme)


def _uncorrectable(nvme: Bench) -> int:
    nvme.queue.execute(io(N.WRITE_UNCORRECTABLE))
    return nvme.status(io(N.READ, prp1=PAGE))


def _compare(nvme: Bench) -> int:
    return nvme.status(io(N.COMPARE), data=b"\1" * 512)


#: Where a row of the tables of illegal commands does not do.
CASES: dict[Status, Case] = {
    S.SUCCESS: lambda nvme: nvme.status(io(N.FLUSH)),
    S.COMMAND_ID_CONFLICT: _command_id_conflict,
    S.INTERNAL_ERROR: _with_backend(io(N.READ), errno.ECONNRESET),
    S.COMMAND_ABORT_REQUESTED: _abort_requested,
    S.ABORTED_SQ_DELETION: _deleted_queue,
    S.ABORTED_FAILED_FUSED: lambda nvme: _last(
        nvme, io(N.COMPARE, 4096, flags=Fused.FIRST), io(N.WRITE, 4096, flags=Fused.SECOND)
    ),
    S.ABORTED_MISSING_FUSED: lambda nvme: nvme.status(io(N.WRITE, flags=Fused.SECOND, prp1=PAGE)),
    S.NAMESPACE_WRITE_PROTECTED: _read_only,
    S.CAPACITY_EXCEEDED: _with_backend(io(N.WRITE), errno.ENOSPC),
    S.FORMAT_IN_PROGRESS: _formatting,
    S.ASYNCHRONOUS_EVENT_REQUEST_LIMIT_EXCEEDED: _events,
    S.FIRMWARE_ACTIVATION_REQUIRES_CONTROLLER_RESET: _firmware,
    S.OVERLAPPING_RANGE: _overlap,
    S.NAMESPACE_INSUFFICIENT_CAPACITY: _management(nsze=1 << 40, ncap=1 << 40),
    S.NAMESPACE_IDENTIFIER_UNAVAILABLE: _all_identifiers,
    S.NAMESPACE_ALREADY_ATTACHED: _attachment(1),
    S.NAMESPACE_NOT_ATTACHED: _attachment(1, select=1, twice=True),
    S.THIN_PROVISIONING_NOT_SUPPORTED: _management(nsze=8, ncap=4),
    S.CONTROLLER_LIST_INVALID: _attachment(2),
    S.DEVICE_SELF_TEST_IN_PROGRESS: lambda nvme: _last(nvme, *[E(A.DEVICE_SELF_TEST, cdw10=1)] * 2, admin=True),
    S.IO_COMMAND_SET_COMBINATION_REJECTED: lambda nvme: nvme.status(E(A.SET_FEATURES, cdw10=0x19, cdw11=1), admin=True),
    S.WRITE_FAULT: _with_backend(io(N.WRITE), errno.EIO),
    S.UNRECOVERED_READ_ERROR: _uncorrectable,
    S.COMPARE_FAILURE: _compare,
    S.ACCESS_DENIED: _with_backend(io(N.WRITE), errno.EPERM),
}

_CMB = "there is no controller memory buffer (CMBSZ is 0)"
_RESERVATIONS = "there are no reservations (ONCS bit 5 is clear)"
_SANITIZE = "there is no Sanitize (SANICAP is 0)"
_METADATA = "no format has metadata, so nothing is protected (LBAF.MS, DPC are 0)"
_ANA = "there is no asymmetric namespace access (CMIC bit 3 is clear)"
_VIRTUALIZATION = "there is no virtualization management, and no secondary controller (OACS bit 7 is clear)"
_LOCKDOWN = "there is no Lockdown (OACS bit 10 is clear)"
_ONE_SET = "all namespaces are of the NVM Command Set, the only one, which is always enabled"
_PATHS = "there is one controller, and one path to it"
_ACTIVATION = "every image can be active after a reset of the controller, and none is refused"

#: What a host cannot have.
UNREACHABLE: dict[Status, str] = {
    S.ABORTED_POWER_LOSS: "PCIe has no notification of a loss of power; a shutdown waits for commands",
    S.METADATA_SGL_LENGTH_INVALID: _METADATA,
    S.INVALID_USE_OF_CMB: _CMB,
    S.ATOMIC_WRITE_UNIT_EXCEEDED: "a compare and write of any length is atomic",
    S.SGL_OFFSET_INVALID: "addresses are no offsets (SGLS bit 20 is clear): that type of descriptor is invalid",
    S.HOST_IDENTIFIER_INCONSISTENT_FORMAT: _RESERVATIONS,
    S.KEEP_ALIVE_TIMER_EXPIRED: "the controller fails then (CSTS.CFS), as over PCIe",
    S.KEEP_ALIVE_TIMEOUT_INVALID: "any time can be set",
    S.ABORTED_PREEMPT_AND_ABORT: _RESERVATIONS,
    S.SANITIZE_FAILED: _SANITIZE,
    S.SANITIZE_IN_PROGRESS: _SANITIZE,
    S.SGL_DATA_BLOCK_GRANULARITY_INVALID: "data blocks have any alignment and length (SGLS bits 1:0 are 1)",
    S.COMMAND_NOT_SUPPORTED_FOR_QUEUE_IN_CMB: _CMB,
    S.COMMAND_INTERRUPTED: "no command is given up half way",
    S.TRANSIENT_TRANSPORT_ERROR: "guest memory is there, or is not: Data Transfer Error",
    S.COMMAND_PROHIBITED_BY_LOCKDOWN: _LOCKDOWN,
    S.ADMIN_COMMAND_MEDIA_NOT_READY: "the controller is ready with its media (CAP.CRMS bit 1 is clear)",
    S.NAMESPACE_NOT_READY: "the controller is ready with its namespaces",
    S.RESERVATION_CONFLICT: _RESERVATIONS,
    S.ABORT_COMMAND_LIMIT_EXCEEDED: "an Abort ends before the next one begins, so there is never more than one",
    S.FIRMWARE_ACTIVATION_REQUIRES_CONVENTIONAL_RESET: _ACTIVATION,
    S.FEATURE_NOT_CHANGEABLE: "every feature there is can be changed",
    S.FIRMWARE_ACTIVATION_REQUIRES_SUBSYSTEM_RESET: _ACTIVATION,
    S.FIRMWARE_ACTIVATION_REQUIRES_MAXIMUM_TIME_VIOLATION: _ACTIVATION,
    S.FIRMWARE_ACTIVATION_PROHIBITED: _ACTIVATION,
    S.NAMESPACE_IS_PRIVATE: _PATHS,
    S.BOOT_PARTITION_WRITE_PROHIBITED: "there are no boot partitions (CAP.BPS is 0)",
    S.INVALID_CONTROLLER_IDENTIFIER: _VIRTUALIZATION,
    S.INVALID_SECONDARY_CONTROLLER_STATE: _VIRTUALIZATION,
    S.INVALID_NUMBER_OF_CONTROLLER_RESOURCES: _VIRTUALIZATION,
    S.INVALID_RESOURCE_IDENTIFIER: _VIRTUALIZATION,
    S.SANITIZE_PROHIBITED_WHILE_PMR_ENABLED: _SANITIZE,
    S.ANA_GROUP_IDENTIFIER_INVALID: _ANA,
    S.ANA_ATTACH_FAILED: _ANA,
    S.INSUFFICIENT_CAPACITY: "there is no Capacity Management (CTRATT bits 7:4 are clear)",
    S.NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED: "as many can be attached as can exist (MAXDNA, MAXCNA are 0)",
    S.PROHIBITION_OF_COMMAND_EXECUTION_NOT_SUPPORTED: _LOCKDOWN,
    S.IO_COMMAND_SET_NOT_ENABLED: _ONE_SET,
    S.INVALID_IO_COMMAND_SET: _ONE_SET,
    S.IDENTIFIER_UNAVAILABLE: "there is no Capacity Management (CTRATT bits 7:4 are clear)",
    S.CONFLICTING_ATTRIBUTES: "the attributes of Dataset Management are hints, all of which go together",
    S.INVALID_PROTECTION_INFORMATION: _METADATA,
    S.ATTEMPTED_WRITE_TO_READ_ONLY_RANGE: "a namespace is read-only or not, there are no ranges",
    S.GUARD_CHECK_ERROR: _METADATA,
    S.APPLICATION_TAG_CHECK_ERROR: _METADATA,
    S.REFERENCE_TAG_CHECK_ERROR: _METADATA,
    S.DEALLOCATED_OR_UNWRITTEN_LOGICAL_BLOCK: "deallocated blocks read as zeroes (NSFEAT bit 2 is clear)",
    S.STORAGE_TAG_CHECK_ERROR: _METADATA,
    S.INTERNAL_PATH_ERROR: _PATHS,
    S.ANA_PERSISTENT_LOSS: _ANA,
    S.ANA_INACCESSIBLE: _ANA,
    S.ANA_TRANSITION: _ANA,
    S.CONTROLLER_PATHING_ERROR: _PATHS,
    S.HOST_PATHING_ERROR: _PATHS,
    S.COMMAND_ABORTED_BY_HOST: "it is the host that says so, of itself",
}

#: The first row of the tables of illegal commands that ends so.
ROWS: dict[Status, tuple[SubmissionEntry, bool]] = {}
for _table, _is_admin in ((ADMIN, True), (NVM, False)):
    for _entry, _status in _table:
        ROWS.setdefault(_status, (_entry, _is_admin))


def test_every_status_code_is_here_once() -> None:
    provoked = {*CASES, *ROWS}
    assert provoked | UNREACHABLE.keys() == set(Status)
    assert provoked & UNREACHABLE.keys() == set()


def test_the_controller_has_none_of_what_it_says_it_has_not() -> None:
    with bench() as nvme:
        controller, namespace = nvme.driver.identify_controller(), nvme.driver.identify_namespace(1)
        registers = nvme.driver.registers
        assert (int(registers.cmbsz), registers.cap.bps, registers.cap.crms, registers.cap.cmbs) == (0, 0, 1, 0)
        assert controller.oncs & 1 << 5 == 0
        assert controller.sanicap == 0
        assert controller.cmic & 1 << 3 == 0
        assert controller.oacs & (1 << 7 | 1 << 10) == 0
        assert controller.ctratt & 0xF0 == 0
        assert controller.sgls & (3 | 1 << 20) == 1
        assert [namespace.lbaf[number] & 0xFFFF for number in range(namespace.nlbaf + 1)] == [0, 0]
        assert (namespace.dpc, namespace.nmic, namespace.nsfeat & 1 << 2) == (0, 0, 0)


@pytest.fixture(scope="module")
def nvme() -> Iterator[Bench]:
    with bench(unallocated="memory:1M") as made:
        yield made


@pytest.mark.parametrize("status", ROWS.keys() - CASES.keys(), ids=lambda status: Status(status).name)
def test_status_codes_of_one_command(nvme: Bench, status: Status) -> None:
    entry, is_admin = ROWS[status]
    assert nvme.status(entry, admin=is_admin) == status


@contextmanager
def fresh(tmp_path: Path, **options: Any) -> Iterator[Bench]:
    with bench(unallocated="memory:300M", **options) as nvme:
        nvme.under_test.__dict__["folder"] = tmp_path
        yield nvme


@pytest.mark.parametrize("status", CASES, ids=lambda status: Status(status).name)
def test_status_codes_of_a_situation(tmp_path: Path, status: Status) -> None:
    with fresh(tmp_path, real_time=status is not S.NAMESPACE_IDENTIFIER_UNAVAILABLE) as nvme:
        assert CASES[status](nvme) == status
