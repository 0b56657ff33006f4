"""Configuration space from the driver's side: chains that are right, and chains that are not."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.client.config_space import ConfigSpace, FoundCapability
from vfio_user.client.device import VfioUserClient
from vfio_user.errors import RemoteProtocolError
from vfio_user.pci import AdvancedErrorReporting, MsiX, PciExpress, PowerManagement
from vfio_user.protocol.constants import RegionIndex
from vfio_user.regions import MemoryRegion
from vfio_user.server.device import Device
from vfio_user.testing.in_process import DeviceUnderTest


class Space(Device):
    """A device that is nothing but a configuration space."""

    def __init__(self, size: int = 256) -> None:
        super().__init__()
        self.memory = MemoryRegion(size)
        self.set_region(RegionIndex.CONFIG, self.memory)

    def put(self, offset: int, data: bytes) -> None:
        self.memory.memory[offset : offset + len(data)] = data

    def chain(self, *links: tuple[int, int, int]) -> None:
        """(offset, id, next) each, the first one being where the chain begins."""
        self.put(0x06, b"\x10\x00")
        self.put(0x34, bytes([links[0][0]]))
        for offset, cap_id, following in links:
            self.put(offset, bytes([cap_id, following]))


def config(client: VfioUserClient) -> ConfigSpace:
    return ConfigSpace(client.region(RegionIndex.CONFIG))


def chains(space: Space) -> list[FoundCapability]:
    with DeviceUnderTest(space) as under_test:
        return config(under_test.client).capabilities()


def test_accesses() -> None:
    space = Space()
    with DeviceUnderTest(space) as under_test:
        view = config(under_test.client)
        view.write8(0x40, 0x11)
        view.write16(0x42, 0x2233)
        view.write32(0x44, 0x4455_6677)
        assert (view.read8(0x40), view.read16(0x42), view.read32(0x44)) == (0x11, 0x2233, 0x4455_6677)
        assert view.dump() == bytes(space.memory.memory)
        view.header.command.bus_master = 1
        assert space.memory.memory[4] == 4
        assert view.size == 256


def test_chains() -> None:
    space = Space(4096)
    space.chain((0x42, 1, 0x53), (0x50, 0x11, 0))  # the two low bits of a pointer mean nothing
    space.put(0x40, b"\x01\x53")
    for at, cap_id, version, following in ((0x100, 1, 2, 0x200), (0x200, 3, 1, 0)):
        space.put(at, struct.pack("<I", cap_id | version << 16 | following << 20))
    with DeviceUnderTest(space) as under_test:
        view = config(under_test.client)
        assert view.capabilities() == [
            FoundCapability(1, 0x40),
            FoundCapability(0x11, 0x50),
            FoundCapability(1, 0x100, 2, extended=True),
            FoundCapability(3, 0x200, 1, extended=True),
        ]
        assert view.find(1) == FoundCapability(1, 0x40)
        assert view.find(1, extended=True) == view.find(AdvancedErrorReporting) == FoundCapability(1, 0x100, 2, True)
        assert view.find(MsiX) == FoundCapability(0x11, 0x50)
        assert view.find(PciExpress) is None
        assert view.view(PciExpress) is None
        pm = view.view(PowerManagement)
        assert pm is not None
        pm.control.power_state = 3
        assert space.memory.memory[0x44] == 3


def test_no_chains() -> None:
    space = Space(4096)
    space.put(0x34, b"\x40")
    assert chains(space) == []
    space.put(0x100, b"\xff" * 4)
    assert chains(space) == []


@pytest.mark.parametrize(
    ("links", "why"),
    [
        ([(0x40, 1, 0x40)], "leads back, to 0x40"),
        ([(0x40, 1, 0x50), (0x50, 2, 0x40)], "leads back, to 0x40"),
        ([(0x40, 1, 0x10)], "leads into the header, to 0x10"),
        ([(0x3C, 1, 0)], "leads into the header, to 0x3c"),
    ],
)
def test_chains_that_go_wrong(links: list[tuple[int, int, int]], why: str) -> None:
    space = Space()
    space.chain(*links)
    with pytest.raises(RemoteProtocolError, match=f"chain of capabilities {why}"):
        chains(space)


@pytest.mark.parametrize(
    ("following", "why"), [(0x100, "back, to 0x100"), (0x080, "out of its space, to 0x80"), (0xFFC, "")]
)
def test_extended_chains_that_go_wrong(following: int, why: str) -> None:
    space = Space(4096)
    space.put(0x100, struct.pack("<I", 1 | 1 << 16 | following << 20))
    if why:
        with pytest.raises(RemoteProtocolError, match=f"extended capabilities leads {why}"):
            chains(space)
    else:
        assert chains(space) == [FoundCapability(1, 0x100, 1, True)]


@given(st.binary(min_size=256, max_size=256) | st.binary(min_size=600, max_size=600).map(lambda data: data * 7))
def test_any_space_ends(contents: bytes) -> None:
    space = Space(256 if len(contents) == 256 else 4096)
    space.put(0, contents[: space.memory.size])
    try:
        found = chains(space)
    except RemoteProtocolError:
        return
    assert len(found) <= 48 + 960
