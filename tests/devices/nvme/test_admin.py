"""The families of admin commands: identify, features, log pages, namespaces, firmware, self-test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.nvme import Bench, PatientBackend, bench, fails_with
from vfio_user.devices.nvme import firmware
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.features import Feature, FeatureCapabilities, Select
from vfio_user.hardware.nvme.identify import (
    Cns,
    IdentifyNamespace,
    IdentifyNamespaceIndependent,
    controller_list,
    unpack_controller_list,
    unpack_namespace_list,
)
from vfio_user.hardware.nvme.logs import (
    CommandEffects,
    CommandEffectsLog,
    ErrorLogEntry,
    FirmwareSlotLog,
    LogPage,
    SelfTestLog,
    SelfTestResult,
    SmartLog,
)
from vfio_user.hardware.nvme.opcodes import AdminOpcode, NvmOpcode
from vfio_user.hardware.nvme.status import Status

E, A = SubmissionEntry, AdminOpcode
ALL = 0xFFFF_FFFF


@pytest.fixture
def nvme() -> Iterator[Bench]:
    with bench(unallocated="memory:4M") as made:
        yield made


# Identify.


def test_the_controller(nvme: Bench) -> None:
    page = nvme.driver.identify_controller()
    assert (page.sn, page.mn, page.fr, page.cntlid) == ("vfio-user-1", "vfio-user NVMe controller", "1.0", 1)
    assert 4096 << page.mdts == nvme.device.max_transfer
    assert (page.sqes, page.cqes, page.nn, page.cntrltype) == (0x66, 0x44, 256, 1)
    assert (page.tnvmcap, page.unvmcap) == (5 << 20, 4 << 20)
    assert page.subnqn.startswith(b"nqn.")
    assert page.ver == int(nvme.driver.registers.vs)


def test_every_page_an_io_controller_has(nvme: Bench) -> None:
    for cns in (Cns.NAMESPACE, Cns.COMMAND_SET_NAMESPACE, Cns.ALLOCATED_NAMESPACE, Cns.COMMAND_SET_ALLOCATED_NAMESPACE):
        assert len(nvme.driver.identify(cns, nsid=1)) == 4096
    assert nvme.driver.identify(Cns.ALLOCATED_NAMESPACE, nsid=1) == nvme.driver.identify(Cns.NAMESPACE, nsid=1)
    for cns in (
        Cns.ACTIVE_NAMESPACE_LIST,
        Cns.COMMAND_SET_ACTIVE_NAMESPACE_LIST,
        Cns.ALLOCATED_NAMESPACE_LIST,
        Cns.COMMAND_SET_ALLOCATED_NAMESPACE_LIST,
    ):
        assert unpack_namespace_list(nvme.driver.identify(cns)) == [1]
        assert unpack_namespace_list(nvme.driver.identify(cns, nsid=1)) == []
    assert unpack_controller_list(nvme.driver.identify(Cns.CONTROLLER_LIST)) == [1]
    assert unpack_controller_list(nvme.driver.identify(Cns.CONTROLLER_LIST, cntid=2)) == []
    assert unpack_controller_list(nvme.driver.identify(Cns.NAMESPACE_CONTROLLER_LIST, nsid=1)) == [1]
    assert nvme.driver.identify(Cns.COMMAND_SETS, cntid=0xFFFF)[:8] == b"\1" + bytes(7)
    assert nvme.driver.identify(Cns.COMMAND_SET_CONTROLLER)[3] == 255
    independent = IdentifyNamespaceIndependent.unpack(nvme.driver.identify(Cns.NAMESPACE_INDEPENDENT, nsid=1))
    assert (independent.nstat, independent.nsattr) == (1, 0)
    common = IdentifyNamespace.unpack(nvme.driver.identify(Cns.NAMESPACE, nsid=ALL))
    assert (common.nsze, common.nlbaf, common.lbaf[:2]) == (0, 1, (9 << 16, 12 << 16))
    descriptors = nvme.driver.identify(Cns.NAMESPACE_DESCRIPTORS, nsid=1)
    assert (descriptors[0], descriptors[1], descriptors[20], descriptors[40]) == (2, 16, 3, 4)
    assert descriptors[4:20] == nvme.driver.identify_namespace(1).nguid
    # An inactive namespace is all zeroes.
    assert not any(nvme.driver.identify(Cns.NAMESPACE, nsid=2))


# Features.


def test_a_feature_has_a_current_a_default_and_a_saved_value(nvme: Bench) -> None:
    driver, feature = nvme.driver, Feature.ARBITRATION
    assert driver.get_feature(feature, select=Select.DEFAULT) == 7
    driver.set_feature(feature, 3)
    values = [driver.get_feature(feature, select=select) for select in (0, 1, 2)]
    assert values == [3, 7, 7]  # nothing was saved: the default is what a reset gives
    driver.set_feature(feature, 5, save=True)
    driver.set_feature(feature, 2)
    assert [driver.get_feature(feature, select=select) for select in (0, 1, 2)] == [2, 7, 5]
    driver.disable()
    driver.enable()
    assert driver.get_feature(feature) == 5
    capabilities = driver.get_feature(feature, select=Select.SUPPORTED_CAPABILITIES)
    assert capabilities == FeatureCapabilities.SAVEABLE | FeatureCapabilities.CHANGEABLE


def test_features_of_a_namespace(nvme: Bench) -> None:
    feature = Feature.ERROR_RECOVERY
    nvme.driver.set_feature(feature, 77, nsid=ALL)
    assert nvme.driver.get_feature(feature, nsid=1) == 77
    assert nvme.driver.get_feature(feature, nsid=1, select=Select.DEFAULT) == 0


def test_the_number_of_queues(nvme: Bench) -> None:
    assert nvme.driver.get_feature(Feature.NUMBER_OF_QUEUES) == 63 << 16 | 63
    nvme.driver.disable()
    nvme.driver.enable()
    assert nvme.driver.set_feature(Feature.NUMBER_OF_QUEUES, 0) == 63 << 16 | 63
    with fails_with(Status.INVALID_FIELD):
        nvme.driver.set_feature(Feature.NUMBER_OF_QUEUES, 0xFFFF)


def test_features_that_are_data(nvme: Bench) -> None:
    nvme.driver.set_feature(Feature.TIMESTAMP, data=(123456).to_bytes(8, "little"))
    _, data = nvme.driver.admin(E(A.GET_FEATURES, cdw10=Feature.TIMESTAMP), receive=8)
    assert 123456 <= int.from_bytes(data[:6], "little") < 123456 + 60_000
    assert data[6] == 2  # set by the host
    nvme.driver.set_feature(Feature.HOST_BEHAVIOR_SUPPORT, data=b"\1" + bytes(511))
    _, data = nvme.driver.admin(E(A.GET_FEATURES, cdw10=Feature.HOST_BEHAVIOR_SUPPORT), receive=512)
    assert data == b"\1" + bytes(511)


def test_a_temperature_that_is_too_high(nvme: Bench) -> None:
    temperature = nvme.device.health.temperature
    assert nvme.driver.get_feature(Feature.TEMPERATURE_THRESHOLD) > temperature
    cids = nvme.driver.admin_queue.submit(E(A.ASYNCHRONOUS_EVENT_REQUEST))
    nvme.driver.set_feature(Feature.TEMPERATURE_THRESHOLD, temperature)
    assert nvme.driver.admin_queue.wait(cids)[0].dw0 == 0x02_01_01
    assert SmartLog.unpack(nvme.driver.get_log(LogPage.SMART, 512)).critical_warning == 2
    nvme.driver.set_feature(Feature.TEMPERATURE_THRESHOLD, temperature + 1)
    assert SmartLog.unpack(nvme.driver.get_log(LogPage.SMART, 512)).critical_warning == 0


# Log pages.


def test_smart_counts(nvme: Bench) -> None:
    nvme.driver.write(nvme.queue, 0, bytes(512 * 1001))
    nvme.driver.read(nvme.queue, 0, 8)
    smart = SmartLog.unpack(nvme.driver.get_log(LogPage.SMART, 512))
    assert (smart.host_read_commands, smart.host_write_commands) == (1, 1)
    assert (smart.data_units_read, smart.data_units_written) == (1, 2)
    assert (smart.available_spare, smart.composite_temperature) == (100, 313)


def test_the_error_log(nvme: Bench) -> None:
    with fails_with(Status.LBA_OUT_OF_RANGE):
        nvme.driver.read(nvme.queue, 5000, 1)
    with fails_with(Status.INVALID_FIELD):
        nvme.driver.identify(0xEE)
    log = nvme.driver.get_log(LogPage.ERROR_INFORMATION, 64 * 64)
    newest, older, none = (ErrorLogEntry.unpack(log[at:]) for at in (0, 64, 128))
    assert (newest.error_count, newest.sqid, newest.parameter_error_location) == (2, 0, 40)
    assert (older.error_count, older.sqid, older.nsid, older.lba) == (1, 1, 1, 5000)
    assert older.status_field >> 1 & 0x7FF == Status.LBA_OUT_OF_RANGE
    assert none.error_count == 0
    assert nvme.driver.get_log(LogPage.ERROR_INFORMATION, 64, offset=64) == older.pack()


def test_what_is_supported(nvme: Bench) -> None:
    supported = nvme.driver.get_log(LogPage.SUPPORTED_LOG_PAGES, 1024)
    pages = [lid for lid in range(256) if supported[4 * lid] & 1]
    assert pages == sorted(LogPage)
    effects = CommandEffectsLog.unpack(nvme.driver.get_log(LogPage.COMMANDS_SUPPORTED_AND_EFFECTS, 4096))
    assert [opcode for opcode, effect in enumerate(effects.io) if effect] == sorted(NvmOpcode)
    assert effects.io[NvmOpcode.WRITE] == CommandEffects.SUPPORTED | CommandEffects.LOGICAL_BLOCK_CONTENT_CHANGE
    without = {A.DOORBELL_BUFFER_CONFIG}
    assert [opcode for opcode, effect in enumerate(effects.admin) if effect] == sorted(set(A) - without)
    features = nvme.driver.get_log(LogPage.FEATURES_SUPPORTED_AND_EFFECTS, 1024)
    assert features[4 * Feature.VOLATILE_WRITE_CACHE] & 1
    assert not features[4 * Feature.HOST_MEMORY_BUFFER] & 1


# Namespaces.


def test_a_namespace_from_nothing_and_back(nvme: Bench) -> None:
    driver = nvme.driver
    page = IdentifyNamespace(nsze=256, ncap=256, flbas=1).pack()
    completion, _ = driver.admin(E(A.NAMESPACE_MANAGEMENT), data=page)
    assert completion.dw0 == 2
    assert driver.namespaces() == [1]
    assert unpack_namespace_list(driver.identify(Cns.ALLOCATED_NAMESPACE_LIST)) == [1, 2]
    assert unpack_controller_list(driver.identify(Cns.NAMESPACE_CONTROLLER_LIST, nsid=2)) == []
    assert IdentifyNamespace.unpack(driver.identify(Cns.ALLOCATED_NAMESPACE, nsid=2)).nsze == 256
    assert driver.identify_controller().unvmcap == 3 << 20
    with fails_with(Status.NAMESPACE_NOT_ATTACHED):
        driver.admin(E(A.NAMESPACE_ATTACHMENT, nsid=2, cdw10=1), data=controller_list([1]))
    driver.admin(E(A.NAMESPACE_ATTACHMENT, nsid=2), data=controller_list([1]))
    assert driver.namespaces() == [1, 2]
    assert driver.block_size(2) == 4096
    driver.write(nvme.queue, 255, b"\1" * 4096, nsid=2)
    assert driver.read(nvme.queue, 255, 1, nsid=2) == b"\1" * 4096
    driver.admin(E(A.NAMESPACE_ATTACHMENT, nsid=2, cdw10=1), data=controller_list([1]))
    with fails_with(Status.INVALID_FIELD):
        driver.read(nvme.queue, 0, 1, nsid=2)
    driver.admin(E(A.NAMESPACE_MANAGEMENT, nsid=2, cdw10=1))
    assert driver.identify_controller().unvmcap == 4 << 20
    # What comes next in the same place is empty, and has another name.
    before = nvme.device.namespaces
    completion, _ = driver.admin(E(A.NAMESPACE_MANAGEMENT), data=page)
    driver.admin(E(A.NAMESPACE_ATTACHMENT, nsid=2), data=controller_list([1]))
    assert driver.read(nvme.queue, 255, 1, nsid=2) == bytes(4096)
    assert before is nvme.device.namespaces


def test_a_format(nvme: Bench) -> None:
    driver = nvme.driver
    driver.write(nvme.queue, 0, b"\1" * 512)
    nvme.queue.execute(E(NvmOpcode.WRITE_UNCORRECTABLE, nsid=1, cdw10=9))
    driver.admin(E(A.FORMAT_NVM, nsid=1, cdw10=1))
    driver.forget_formats()
    assert (driver.block_size(), driver.identify_namespace(1).nsze) == (4096, 256)
    assert driver.read(nvme.queue, 0, 2) == bytes(8192)
    driver.admin(E(A.FORMAT_NVM, nsid=ALL, cdw10=1 << 9))
    driver.forget_formats()
    assert driver.block_size() == 512
    # Not where not one block would be left.
    driver.admin(E(A.NAMESPACE_MANAGEMENT), data=IdentifyNamespace(nsze=1, ncap=1).pack())
    with fails_with(Status.INVALID_FORMAT):
        driver.admin(E(A.FORMAT_NVM, nsid=2, cdw10=1))
    driver.admin(E(A.FORMAT_NVM, nsid=2))


def test_no_io_while_a_namespace_is_formatted() -> None:
    backend = PatientBackend()
    with bench(real_time=True, backend=backend) as nvme:
        admin = nvme.driver.admin_queue
        entry = E(A.FORMAT_NVM, nsid=1)
        cids = admin.submit(entry)
        nvme.under_test.settle()
        assert nvme.status(E(NvmOpcode.READ, nsid=1)) == Status.FORMAT_IN_PROGRESS
        assert nvme.status(entry, admin=True) == Status.FORMAT_IN_PROGRESS
        backend.let_go()
        assert admin.wait(cids)[0].status == 0
        assert nvme.status(E(NvmOpcode.READ, nsid=1), data=bytes(512)) == Status.SUCCESS


def test_a_namespace_goes_when_what_has_begun_there_has_ended() -> None:
    backend = PatientBackend(2 << 20, patient=False)
    with bench(real_time=True, image="") as nvme:
        driver, admin = nvme.driver, nvme.driver.admin_queue
        nvme.device.namespaces._pool = backend
        page = IdentifyNamespace(nsze=256, ncap=256).pack()
        for nsid in (1, 2):
            assert backend.flushed == nsid - 1  # what was there before has gone for good
            driver.admin(E(A.NAMESPACE_MANAGEMENT), data=page)
            driver.admin(E(A.NAMESPACE_ATTACHMENT, nsid=nsid), data=controller_list([1]))
        backend.hold()
        write = E(NvmOpcode.WRITE, prp1=nvme.buffer(b"\1" * 512))
        writes = nvme.queue.submit(write._replace(nsid=1), write._replace(nsid=2))
        deletion = admin.submit(E(A.NAMESPACE_MANAGEMENT, nsid=ALL, cdw10=1))
        nvme.under_test.settle()
        assert admin.poll() == []
        assert nvme.status(E(NvmOpcode.READ, nsid=1)) == Status.INVALID_FIELD
        assert unpack_namespace_list(driver.identify(Cns.ALLOCATED_NAMESPACE_LIST)) == [1, 2]
        backend.let_go()
        assert admin.wait(deletion)[0].status == 0
        assert [completion.status for completion in nvme.queue.poll()] == [0, 0]
        assert len(writes) == 2
        assert unpack_namespace_list(driver.identify(Cns.ALLOCATED_NAMESPACE_LIST)) == []


@pytest.mark.parametrize("reset", [False, True])
def test_a_format_of_all_namespaces_waits_for_what_has_begun_in_each(reset: bool) -> None:
    first, second = PatientBackend(), PatientBackend(patient=False)
    with bench(real_time=True, backend=first) as nvme:
        nvme.device.add_namespace(second)
        second.memory[:512] = b"\2" * 512
        nvme.queue.submit(E(NvmOpcode.WRITE, nsid=1, prp1=nvme.buffer(b"\1" * 512)))
        cids = nvme.driver.admin_queue.submit(E(A.FORMAT_NVM, nsid=ALL))
        nvme.under_test.settle()
        assert second.memory[0] == 2
        if reset:
            nvme.driver.registers.cc = 0
        first.let_go()
        if reset:
            nvme.under_test.wait_until(lambda: not nvme.device.bar0.csts.rdy)
            assert (first.memory[0], second.memory[0]) == (1, 2)
            assert not any(namespace.formatting for namespace in nvme.device.namespaces)
        else:
            assert nvme.driver.admin_queue.wait(cids)[0].status == 0
            assert (first.memory[0], second.memory[0]) == (0, 0)


# Firmware.


def test_firmware_goes_to_slots_and_becomes_active(nvme: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = nvme.driver

    def download(image: bytes, offset: int = 0) -> None:
        driver.admin(E(A.FIRMWARE_IMAGE_DOWNLOAD, cdw10=len(image) // 4 - 1, cdw11=offset // 4), data=image)

    download(b"more".ljust(4096), 4096)
    download(b"2.0     ".ljust(4096))
    with fails_with(Status.FIRMWARE_ACTIVATION_REQUIRES_CONTROLLER_RESET):
        driver.admin(E(A.FIRMWARE_COMMIT, cdw10=2 | 1 << 3))
    log = FirmwareSlotLog.unpack(driver.get_log(LogPage.FIRMWARE_SLOT, 512))
    assert (log.afi, log.frs1, log.frs2, log.frs3) == (0x21, "1.0", "2.0", "")
    assert driver.identify_controller().fr == "1.0"
    driver.disable()
    driver.enable()
    assert driver.identify_controller().fr == "2.0"
    driver.admin(E(A.FIRMWARE_COMMIT, cdw10=1 | 3 << 3))  # at once
    assert driver.identify_controller().fr == "1.0"
    download(b"3.0     ")
    driver.admin(E(A.FIRMWARE_COMMIT))  # in whatever slot
    assert FirmwareSlotLog.unpack(driver.get_log(LogPage.FIRMWARE_SLOT, 512)).frs3 == "3.0"
    download(b"4.0     ")
    with fails_with(Status.OVERLAPPING_RANGE):
        download(b"4.0     ", 4)
    download(b"4.0     ", 4)
    with fails_with(Status.INVALID_FIRMWARE_IMAGE):  # it has a hole at its start
        driver.admin(E(A.FIRMWARE_COMMIT, cdw10=3))
    monkeypatch.setattr(firmware, "_MAX_PARTS", 2)
    download(b"5.0     ")
    download(b"5.0     ", 8)
    with fails_with(Status.INVALID_FIELD):
        download(b"5.0     ", 16)
    driver.admin(E(A.FIRMWARE_COMMIT, cdw10=3))
    download(b"\xff" * 8)
    with fails_with(Status.INVALID_FIRMWARE_IMAGE):
        driver.admin(E(A.FIRMWARE_COMMIT, cdw10=3))


# Self-test.


def test_self_tests(nvme: Bench) -> None:
    driver, under_test = nvme.driver, nvme.under_test

    def log() -> tuple[SelfTestLog, SelfTestResult]:
        found = SelfTestLog.unpack(driver.get_log(LogPage.DEVICE_SELF_TEST, 564))
        return found, SelfTestResult.unpack(found.results)

    assert log()[1].status == 0xF
    driver.admin(E(A.DEVICE_SELF_TEST, cdw10=1, nsid=1))
    with fails_with(Status.DEVICE_SELF_TEST_IN_PROGRESS):
        driver.admin(E(A.DEVICE_SELF_TEST, cdw10=2))
    under_test.advance(0.6)
    assert (log()[0].current_operation, log()[0].current_completion) == (1, 50)
    under_test.advance(1)
    assert (log()[0].current_operation, log()[1].status, log()[1].nsid) == (0, 0x10, 1)
    driver.admin(E(A.DEVICE_SELF_TEST, cdw10=2))
    driver.admin(E(A.DEVICE_SELF_TEST, cdw10=0xF))
    assert log()[1].status == 0x21
    driver.admin(E(A.DEVICE_SELF_TEST, cdw10=1))
    driver.disable()
    driver.enable()
    assert log()[1].status == 0x12
    driver.admin(E(A.DEVICE_SELF_TEST, cdw10=2))
    driver.disable()
    driver.enable()
    under_test.advance(30)
    assert log()[1].status == 0x20
    assert SelfTestResult.unpack(log()[0].results[28:]).status == 0x12
