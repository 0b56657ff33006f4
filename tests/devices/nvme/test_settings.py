"""What a controller remembers of the process before it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.nvme import Bench, PatientBackend, bench, fails_with
from vfio_user.devices.nvme import Nvme
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.features import Feature, Select
from vfio_user.hardware.nvme.identify import IdentifyNamespace, controller_list
from vfio_user.hardware.nvme.logs import FirmwareSlotLog, LogPage, SelfTestLog, SmartLog
from vfio_user.hardware.nvme.opcodes import AdminOpcode
from vfio_user.hardware.nvme.status import Status
from vfio_user.protocol.migration import MigrationState

MIB = 1 << 20
E, A = SubmissionEntry, AdminOpcode


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    file = tmp_path / "pool.img"
    with file.open("wb") as made:
        made.truncate(8 * MIB)
    return file


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Settings of a controller with two namespaces in 8 MiB."""
    file = tmp_path_factory.mktemp("settings") / "valid"
    with bench(real_time=True, unallocated="memory:8M", settings=str(file)) as nvme:
        create(nvme, 2048)
        create(nvme, 2048)
    return file.read_bytes()


def settings_of(pool: Path) -> Path:
    return pool.with_name(f"{pool.name}.settings.json")


def create(nvme: Bench, blocks: int, lba_format: int = 0) -> int:
    page = IdentifyNamespace(nsze=blocks, ncap=blocks, flbas=lba_format).pack()
    nsid = nvme.driver.admin(E(A.NAMESPACE_MANAGEMENT), data=page)[0].dw0
    nvme.driver.admin(E(A.NAMESPACE_ATTACHMENT, nsid=nsid), data=controller_list([1]))
    return nsid


def test_namespaces_survive(pool: Path) -> None:
    with bench(real_time=True, unallocated=str(pool)) as nvme:
        assert [create(nvme, 2048), create(nvme, 256, 1), create(nvme, 8)] == [2, 3, 4]
        nvme.driver.write(nvme.queue, 7, b"\2" * 512, nsid=2)
        nvme.driver.write(nvme.queue, 255, b"\3" * 4096, nsid=3)
        nvme.driver.flush(nvme.queue, nsid=0xFFFF_FFFF)
        nvme.driver.admin(E(A.NAMESPACE_MANAGEMENT, nsid=2, cdw10=1))  # which leaves a gap
        nvme.driver.admin(E(A.NAMESPACE_ATTACHMENT, nsid=4, cdw10=1), data=controller_list([1]))
        names = [nvme.driver.identify_namespace(nsid).nguid for nsid in (1, 3)]
        # The process need not end well: the file is what it was when the commands completed.
        shutil.copytree(pool.parent, pool.parent / "copy")
    for file in (pool, pool.parent / "copy" / pool.name):
        with bench(real_time=True, unallocated=f"file:{file}?mapped=on") as nvme:
            assert nvme.driver.namespaces() == [1, 3]
            assert nvme.driver.identify(0x10)[:16] == b"\1\0\0\0\3\0\0\0\4\0\0\0\0\0\0\0"
            assert [nvme.driver.identify_namespace(nsid).nguid for nsid in (1, 3)] == names
            assert nvme.driver.read(nvme.queue, 255, 1, nsid=3) == b"\3" * 4096
            assert create(nvme, 2048) == 2
            with fails_with(Status.NAMESPACE_INSUFFICIENT_CAPACITY):
                create(nvme, 16384)


def test_a_format_survives_and_the_image_may_have_grown(tmp_path: Path) -> None:
    file = tmp_path / "disk.img"
    file.write_bytes(bytes(MIB))
    settings = str(tmp_path / "settings")
    with bench(real_time=True, image=str(file), settings=settings) as nvme:
        nvme.driver.admin(E(A.FORMAT_NVM, nsid=1, cdw10=1))
        nvme.driver.shut_down()
    with file.open("r+b") as grown:
        grown.truncate(2 * MIB)
    with bench(real_time=True, image=str(file), settings=settings) as nvme:
        page = nvme.driver.identify_namespace(1)
        assert (page.nsze, page.flbas) == (512, 1)


def test_saved_features_firmware_self_tests_and_counters_survive(tmp_path: Path) -> None:
    settings = str(tmp_path / "settings")
    with bench(real_time=True, settings=settings) as nvme:
        driver = nvme.driver
        driver.set_feature(Feature.VOLATILE_WRITE_CACHE, 0, save=True)
        driver.set_feature(Feature.INTERRUPT_COALESCING, 0x0101)
        driver.admin(E(A.FIRMWARE_IMAGE_DOWNLOAD, cdw10=1), data=b"2.0     ")
        with fails_with(Status.FIRMWARE_ACTIVATION_REQUIRES_CONTROLLER_RESET):
            driver.admin(E(A.FIRMWARE_COMMIT, cdw10=2 | 1 << 3))
        for action in (1, 0xF):
            driver.admin(E(A.DEVICE_SELF_TEST, cdw10=action))
        driver.write(nvme.queue, 0, bytes(512))
        driver.shut_down()
        assert json.loads(Path(settings).read_text())["health"]["writes"] == 1
    with bench(real_time=True, settings=settings) as nvme:
        driver = nvme.driver
        assert driver.get_feature(Feature.VOLATILE_WRITE_CACHE) == 0
        assert driver.get_feature(Feature.VOLATILE_WRITE_CACHE, select=Select.SAVED) == 0
        assert not nvme.device.features.write_cache
        assert driver.get_feature(Feature.INTERRUPT_COALESCING) == 0
        slots = FirmwareSlotLog.unpack(driver.get_log(LogPage.FIRMWARE_SLOT, 512))
        assert (slots.afi & 7, slots.frs2.rstrip(), driver.identify_controller().fr.rstrip()) == (2, "2.0", "2.0")
        smart = SmartLog.unpack(driver.get_log(LogPage.SMART, 512))
        assert (smart.power_cycles, smart.host_write_commands) == (2, 1)
        results = SelfTestLog.unpack(driver.get_log(LogPage.DEVICE_SELF_TEST, 564)).results
        assert results[0] == 0x11


@pytest.mark.parametrize("option", ["none", ""])
def test_nothing_is_written_where_nothing_is_to_be(pool: Path, option: str) -> None:
    with bench(unallocated=str(pool) if option else "memory:1M", settings=option, real_time=True) as nvme:
        create(nvme, 8)
        nvme.driver.shut_down()
    assert sorted(path.name for path in pool.parent.iterdir()) == ["pool.img"]


def spoil(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def spoiled(data: bytes) -> bytes:
        document = json.loads(data)
        change(document)
        return json.dumps(document).encode()

    return spoiled


WRONG: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: data[:-20], "no settings this controller can have"),
    (lambda _: b"", "no settings"),
    (lambda _: b"[]", "does not begin as one"),
    (lambda _: b"\xff\xfe", "no settings"),
    (lambda _: b"[" * 100_000, "no settings"),
    (lambda data: data + b" " * (5 << 20), "more than"),
    (spoil(lambda it: it.update(version=2)), "it is of version 2; this library reads 1"),
    (spoil(lambda it: it.pop("namespaces")), "namespaces"),
    (spoil(lambda it: it["namespaces"][1].update(nsid=1)), "none that is in use"),
    (spoil(lambda it: it["namespaces"][1].update(nsid=257)), "it is 1 to 256"),
    (spoil(lambda it: it["namespaces"][1].update(slice=8 * MIB)), "from 8388608 on of the unallocated"),
    (spoil(lambda it: it["namespaces"][1].update(slice=-512)), "bytes from -512 on"),
    (spoil(lambda it: it["namespaces"][1].update(size="x")), "no settings"),
    (spoil(lambda it: it["namespaces"][2].update(slice=0)), "or they are another's"),
    (spoil(lambda it: it["namespaces"][1].update(lba_format=2)), "has format 2"),
    (spoil(lambda it: it["namespaces"][1].update(nguid="00")), "and name 00"),
    (spoil(lambda it: it.update(features=[[7, 0, 1]])), "feature 7 of namespace 0 is 1"),
    (spoil(lambda it: it.update(features=[[6, 0, 2]])), "feature 6 of namespace 0 is 2"),
    (spoil(lambda it: it["firmware"].update(active=3)), "firmware slot 3 is active, and empty"),
    (spoil(lambda it: it["firmware"].update(slots=[[4, "x"]])), "firmware 'x' in slot 4"),
    (spoil(lambda it: it["health"].update(reads=-1)), "its counters are"),
    (spoil(lambda it: it.update(self_tests=["00"])), "no settings"),
]


@pytest.mark.parametrize(("change", "why"), WRONG, ids=[why[:30] for _, why in WRONG])
def test_a_file_that_is_none_of_its(pool: Path, valid: bytes, change: Callable[[bytes], bytes], why: str) -> None:
    file = settings_of(pool)
    spoiled = change(valid)
    file.write_bytes(spoiled)
    with pytest.raises(ValueError, match=why):
        Nvme(image="memory:1M", unallocated=str(pool))
    assert file.read_bytes() == spoiled


def test_there_is_no_folder_for_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder for the settings"):
        Nvme(settings=str(tmp_path / "none" / "settings"))


def test_a_command_that_cannot_be_kept_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = tmp_path / "settings"
    with bench(real_time=True, settings=str(settings)) as nvme:
        nvme.driver.set_feature(Feature.VOLATILE_WRITE_CACHE, 0, save=True)
        before = settings.read_bytes()
        obstacle = tmp_path / "settings.new"
        obstacle.mkdir()
        with fails_with(Status.WRITE_FAULT):
            nvme.driver.set_feature(Feature.VOLATILE_WRITE_CACHE, 1, save=True)
        nvme.driver.shut_down()
        assert "what it was to remember is lost" in caplog.text
        assert settings.read_bytes() == before
        obstacle.rmdir()
        nvme.driver.set_feature(Feature.VOLATILE_WRITE_CACHE, 1, save=True)
        # Another process has the disk by now.
        settings.write_bytes(before)
        with fails_with(Status.WRITE_FAULT):
            nvme.driver.set_feature(Feature.VOLATILE_WRITE_CACHE, 0, save=True)
    assert settings.read_bytes() == before


def test_a_state_that_is_loaded_is_kept_and_its_source_writes_no_more(pool: Path) -> None:
    with bench(real_time=True, unallocated=str(pool)) as source:
        destination = Nvme(image="memory:1M", unallocated=str(pool))
        create(source, 2048)
        destination.load_state(source.device.save_state())
        destination.loop.run_once(0)
        while not destination.jobs.is_idle:
            destination.loop.run_once(0.1)
        namespace = destination.namespaces.get(2)
        assert namespace is not None
        namespace.attached = False
        destination.jobs.close()
        destination.settings.update()
        destination.settings.write()
        source.driver.write(source.queue, 0, bytes(512))
    rows = json.loads(settings_of(pool).read_text())["namespaces"]
    assert [(row["nsid"], row["attached"]) for row in rows] == [(1, True), (2, False)]
    destination.close()
    destination.loop.close()


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_namespace_that_is_being_made_when_the_controller_moves(cancelled: bool) -> None:
    pool = PatientBackend(4 * MIB)
    with bench(real_time=True, unallocated="memory:1M") as nvme:
        nvme.device.namespaces._pool = pool
        nvme.device.jobs._threads = 1
        page = nvme.buffer(IdentifyNamespace(nsze=8, ncap=8).pack())
        cids = nvme.driver.admin_queue.submit(*[E(A.NAMESPACE_MANAGEMENT, prp1=page)] * 2)
        nvme.under_test.settle()
        state = nvme.device.save_state()
        if cancelled:
            nvme.driver.disable()
        pool.let_go()
        nvme.under_test.wait_until(lambda: nvme.device.jobs.is_idle)
        if cancelled:
            assert [namespace.nsid for namespace in nvme.device.namespaces] == [1]
            return
        nvme.driver.admin_queue.wait(cids)
        nvme.device.load_state(state)
        nvme.under_test.settle()
        nvme.under_test.wait_until(lambda: nvme.device.jobs.is_idle)
        assert [namespace.nsid for namespace in nvme.device.namespaces] == [1, 2, 3]


def test_of_two_processes_the_one_that_runs_writes(pool: Path) -> None:
    with bench(real_time=True, unallocated=str(pool)) as source:
        for move in range(2):
            other = Nvme(image="memory:1M", unallocated=str(pool))
            other.close()  # it was only there in case
            other.loop.close()
            assert create(source, 8) == 2 + 2 * move
            # The other one ran for a moment, and the move was called off.
            settings_of(pool).write_bytes(b"theirs")
            source.function.client.migration.go_to(MigrationState.STOP)
            source.function.client.migration.go_to(MigrationState.RUNNING)
            assert create(source, 8) == 3 + 2 * move
    assert b"theirs" not in settings_of(pool).read_bytes()
