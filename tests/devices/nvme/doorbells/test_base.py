"""What all doorbells share: where a written value goes, and what a controller with each kind of them says of itself."""

from __future__ import annotations

import pytest

from tests.support.nvme import bench
from vfio_user.devices.nvme import DoorbellMode, Nvme
from vfio_user.drivers.nvme import NvmeDriver
from vfio_user.errors import InvalidAccess, StateError
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.opcodes import AdminOpcode, NvmOpcode
from vfio_user.hardware.nvme.registers import DOORBELLS_OFFSET
from vfio_user.hardware.nvme.status import Status
from vfio_user.protocol.constants import Command
from vfio_user.protocol.header import Header
from vfio_user.server.session import Observer
from vfio_user.testing.in_process import DeviceUnderTest


@pytest.mark.parametrize("mode", DoorbellMode)
def test_what_a_client_can_map(mode: DoorbellMode) -> None:
    with bench(doorbells=mode) as nvme:
        areas = nvme.device.region(0).mappable_areas
        assert areas == (((DOORBELLS_OFFSET, 4096),) if mode is DoorbellMode.MAPPED else ())


@pytest.mark.parametrize("mode", DoorbellMode)
def test_doorbell_buffers_where_there_are_any(mode: DoorbellMode) -> None:
    with bench(doorbells=mode) as nvme:
        takes_buffers = mode is DoorbellMode.SHADOW
        assert bool(nvme.driver.identify_controller().oacs & 1 << 8) is takes_buffers
        entry = SubmissionEntry(
            AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=nvme.buffer(size=4096), prp2=nvme.buffer(size=4096)
        )
        assert nvme.status(entry, admin=True) == (0 if takes_buffers else Status.INVALID_COMMAND_OPCODE)


def test_a_controller_without_the_page_says_why() -> None:
    with bench() as nvme, pytest.raises(StateError, match=r"doorbell_page is not built yet .* this one has none"):
        nvme.device.doorbell_page  # noqa: B018


@pytest.mark.parametrize("mode", DoorbellMode)
def test_queues_are_made_again_after_resets(mode: DoorbellMode) -> None:
    with bench(doorbells=mode) as nvme:
        for _ in range(3):
            for _ in range(20):
                nvme.driver.write(nvme.queue, 0, bytes(512))
            nvme.driver.disable()
            nvme.driver.enable()
            nvme.queue = nvme.driver.create_queue_pair(16)


@pytest.mark.parametrize("mode", DoorbellMode)
def test_the_pin(mode: DoorbellMode) -> None:
    device = Nvme(image="memory:1M", doorbells=mode)
    try:
        with DeviceUnderTest(device) as under_test:
            nvme = NvmeDriver(under_test.function, vectors=0)
            under_test.function.enable_intx()
            nvme.admin_queue.submit(SubmissionEntry(0xFF))
            under_test.advance(0.1)
            assert device.interrupts.intx_level
            nvme.admin_queue.poll()
            under_test.advance(0.1)
            assert not device.interrupts.intx_level
    finally:
        device.close()
        device.loop.close()


def test_a_state_of_other_doorbells_is_refused() -> None:
    with bench(doorbells=DoorbellMode.SHADOW) as nvme:
        state = nvme.device.save_state()
    for mode in (DoorbellMode.TRAPPED, DoorbellMode.MAPPED):
        with bench(doorbells=mode) as other:
            text = f"a controller with doorbells=shadow, and this one has doorbells={mode.value}"
            with pytest.raises(InvalidAccess, match=text):
                other.device.load_state(state)
            other.driver.write(other.queue, 0, bytes(512))  # nothing has changed


class Writes(Observer):
    """Counts writes of registers."""

    def __init__(self) -> None:
        self.count = 0

    def command(self, header: Header, payload: bytes, fds: int) -> None:
        self.count += header.command == Command.REGION_WRITE


@pytest.mark.parametrize(
    ("mode", "one_by_one", "together"),
    [(DoorbellMode.TRAPPED, 40, 2), (DoorbellMode.SHADOW, 20, 1), (DoorbellMode.MAPPED, 0, 0)],
)
def test_how_many_messages_commands_take(mode: DoorbellMode, one_by_one: int, together: int) -> None:
    device, writes = Nvme(image="memory:1M", doorbells=mode), Writes()
    try:
        with DeviceUnderTest(device, observer=writes) as under_test:
            nvme = NvmeDriver(under_test.function)
            if mode is DoorbellMode.SHADOW:
                nvme.use_shadow_doorbells()
            queue = nvme.create_queue_pair(64)
            flush = SubmissionEntry(NvmOpcode.FLUSH, nsid=1)
            queue.execute(flush)  # the event index of a head begins at 0, which the first one passes
            before = writes.count
            for _ in range(20):
                queue.execute(flush)
            assert writes.count - before == one_by_one
            before = writes.count
            cids = queue.submit(*[flush] * 20)
            under_test.settle()
            queue.wait(cids)
            assert writes.count - before == together
    finally:
        device.close()
        device.loop.close()
