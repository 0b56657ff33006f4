"""Configuration space in words: the header, the BARs and every capability, read from its bytes alone.

The bytes may come from a device nobody knows, or one that lies: nothing here raises, chains that go in circles or lead
out of their space are told as faults and end there, and no count in the bytes is believed beyond the bytes there are.

The names are those of the descriptions the devices here are made of, so whatever can be declared can be read.

Spec: PCI 3.0 6.1, 6.7; PCI Express Base 7.5 to 7.9; for the ids, "PCI Code and ID Assignment Specification".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from vfio_user.pci import capabilities as known
from vfio_user.pci.capabilities import AnyCapability, ExtendedCapability
from vfio_user.pci.header import HEADER_SIZE, MULTIFUNCTION, Type0Header
from vfio_user.pci.registers import RegisterBlock
from vfio_user.pci.registers.description import RegisterDescription, walk

__all__ = ["CapabilityInWords", "ConfigInWords", "FieldInWords", "RegisterInWords", "decode_config"]

_CONVENTIONAL_END = 0x100

#: Where the header is the same for endpoints and bridges.
_COMMON_END = 0x10

_NAMES = {
    0x01: "Power Management",
    0x02: "AGP",
    0x03: "Vital Product Data",
    0x04: "Slot Identification",
    0x05: "MSI",
    0x06: "CompactPCI Hot Swap",
    0x07: "PCI-X",
    0x08: "HyperTransport",
    0x09: "Vendor Specific",
    0x0A: "Debug Port",
    0x0B: "CompactPCI Resource Control",
    0x0C: "Hot-Plug",
    0x0D: "Bridge Subsystem Ids",
    0x0E: "AGP 8x",
    0x0F: "Secure Device",
    0x10: "PCI Express",
    0x11: "MSI-X",
    0x12: "SATA Data/Index",
    0x13: "Advanced Features",
    0x14: "Enhanced Allocation",
    0x15: "Flattening Portal Bridge",
}

_EXTENDED_NAMES = {
    0x01: "Advanced Error Reporting",
    0x02: "Virtual Channel",
    0x03: "Device Serial Number",
    0x04: "Power Budgeting",
    0x05: "Root Complex Link Declaration",
    0x06: "Root Complex Internal Link Control",
    0x07: "Root Complex Event Collector Association",
    0x08: "Multi-Function Virtual Channel",
    0x09: "Virtual Channel (with MFVC)",
    0x0A: "Root Complex Register Block",
    0x0B: "Vendor Specific",
    0x0D: "Access Control Services",
    0x0E: "Alternative Routing-ID",
    0x0F: "Address Translation Service",
    0x10: "Single Root I/O Virtualization",
    0x12: "Multicast",
    0x13: "Page Request",
    0x15: "Resizable BAR",
    0x16: "Dynamic Power Allocation",
    0x17: "TPH Requester",
    0x18: "Latency Tolerance Reporting",
    0x19: "Secondary PCI Express",
    0x1B: "Process Address Space ID",
    0x1D: "Downstream Port Containment",
    0x1E: "L1 PM Substates",
    0x1F: "Precision Time Measurement",
    0x22: "Readiness Time Reporting",
    0x23: "Designated Vendor Specific",
    0x24: "VF Resizable BAR",
    0x25: "Data Link Feature",
    0x26: "Physical Layer 16.0 GT/s",
    0x27: "Lane Margining",
    0x29: "Native PCIe Enclosure Management",
    0x2A: "Physical Layer 32.0 GT/s",
    0x2B: "Alternate Protocol",
    0x2E: "Data Object Exchange",
    0x2F: "Device 3",
}


class FieldInWords(NamedTuple):
    """A field of a register.

    Attributes:
        name: its name.
        width: bits.
        value: not shifted.
        meaning: what that value is called; empty where it has no name.
    """

    name: str
    width: int
    value: int
    meaning: str


class RegisterInWords(NamedTuple):
    """A register.

    Attributes:
        name: its name, with its index in an array.
        offset: in configuration space, bytes.
        size: bytes.
        value: what it reads.
        fields: what that means; empty for a register without fields.
    """

    name: str
    offset: int
    size: int
    value: int
    fields: tuple[FieldInWords, ...]


class CapabilityInWords(NamedTuple):
    """A capability.

    Attributes:
        name: of its kind; empty for an id that has none.
        cap_id: its id.
        offset: in configuration space, bytes.
        version: of an extended one; 0 for a conventional one.
        extended: which chain it is in.
        registers: what is known to be in it.
        contents: the bytes behind those, as far as it says it reaches: a vendor's.
    """

    name: str
    cap_id: int
    offset: int
    version: int
    extended: bool
    registers: tuple[RegisterInWords, ...]
    contents: bytes


class ConfigInWords(NamedTuple):
    """A configuration space.

    Attributes:
        size: bytes that were given.
        header: its registers, all of an endpoint's; of a bridge's only those both have.
        capabilities: both chains, in their order.
        faults: what is wrong with it.
    """

    size: int
    header: tuple[RegisterInWords, ...]
    capabilities: tuple[CapabilityInWords, ...]
    faults: tuple[str, ...]


def decode_config(config: bytes | bytearray) -> ConfigInWords:
    """Reads configuration space.

    Args:
        config: from offset 0 on, 64 bytes or more to be of use; 256 and 4096 are what there is.
    """
    config = bytes(config)
    faults: list[str] = []
    header = dict(_registers(Type0Header, config, 0, min(len(config), HEADER_SIZE)))
    kind = header["header_type"].value & ~MULTIFUNCTION if "header_type" in header else 0
    if kind:
        faults.append(f"header type {kind} is no endpoint's: what stands behind the first 16 bytes is not decoded")
        header = {name: register for name, register in header.items() if register.offset < _COMMON_END}
    places = [*_conventional(config, faults), *_extended(config, faults)]
    starts = sorted({offset for _, offset, _, _ in places} | {_CONVENTIONAL_END, len(config)})
    found = []
    for cap_id, offset, version, extended in places:
        end = next((start for start in starts if start > offset), len(config))
        found.append(_capability(config, cap_id, offset, version, end, extended=extended))
    return ConfigInWords(len(config), tuple(header.values()), tuple(found), tuple(faults))


# The chains: (id, offset, version, extended) of each.


def _word(config: bytes, at: int, size: int = 4) -> int:
    return int.from_bytes(config[at : at + size], "little")


def _conventional(config: bytes, faults: list[str]) -> Iterator[tuple[int, int, int, bool]]:
    if len(config) < HEADER_SIZE or not config[0x06] & 0x10:
        return
    at, seen = config[0x34] & 0xFC, set[int]()
    while at:
        if at < HEADER_SIZE or at in seen or at + 2 > len(config):
            where = "back" if at in seen else "into the header" if at < HEADER_SIZE else "out of what was read"
            faults.append(f"the chain of capabilities leads {where}, to {at:#x}")
            return
        seen.add(at)
        yield config[at], at, 0, False
        at = config[at + 1] & 0xFC


def _extended(config: bytes, faults: list[str]) -> Iterator[tuple[int, int, int, bool]]:
    at, seen = _CONVENTIONAL_END if len(config) > _CONVENTIONAL_END else 0, set[int]()
    while at:
        if at < _CONVENTIONAL_END or at in seen or at + 4 > len(config):
            where = "back" if at in seen else "out of its space"
            faults.append(f"the chain of extended capabilities leads {where}, to {at:#x}")
            return
        seen.add(at)
        header = _word(config, at)
        # An empty header at 0x100 says that there are none; all ones are what nobody answers.
        if header in (0, 0xFFFF_FFFF):
            return
        yield header & 0xFFFF, at, header >> 16 & 0xF, True
        at = header >> 20 & 0xFFC


# What is in one.


@cache
def _kinds() -> Mapping[tuple[int, bool], type[AnyCapability]]:
    """The classes that describe capabilities, by id and chain."""
    classes = [item for name in known.__all__ if isinstance(item := getattr(known, name), type)]
    return {
        (kind.cap_id, issubclass(kind, ExtendedCapability)): kind
        for kind in classes
        if issubclass(kind, AnyCapability) and hasattr(kind, "cap_id")
    }


def _capability(
    config: bytes, cap_id: int, offset: int, version: int, end: int, *, extended: bool
) -> CapabilityInWords:
    name = (_EXTENDED_NAMES if extended else _NAMES).get(cap_id, "")
    kind = _kinds().get((cap_id, extended))
    if kind is None:
        return CapabilityInWords(name, cap_id, offset, version, extended, (), b"")
    measure = _LENGTHS.get((cap_id, extended))
    end = min(end, offset + (kind.size if measure is None else measure(config[offset:end])))
    registers = tuple(
        register
        for name_, register in _registers(kind, config, offset, end)
        if name_ not in ("capability_id", "next_capability", "header")
    )
    described = offset + kind.size
    return CapabilityInWords(name, cap_id, offset, version, extended, registers, config[described:end])


def _registers(block: type[RegisterBlock], config: bytes, base: int, end: int) -> Iterator[tuple[str, RegisterInWords]]:
    """The registers of a block that lie in ``config[base:end]`` as a whole, by name."""
    for item in walk(block):
        if not _answers(item, config, base):
            continue
        register = item.register
        for name, offset in item.elements():
            if base + offset + register.size > end:
                continue
            value = _word(config, base + offset, register.size)
            fields = []
            if register.fields:
                for field in register.bits:
                    number = int(field.extract(value))
                    fields.append(FieldInWords(field.name, field.width, number, field.values.get(number, "")))
            yield name, RegisterInWords(name, base + offset, register.size, value, tuple(fields))


def _answers(item: RegisterDescription, config: bytes, base: int) -> bool:
    """Of registers that share a place, whether this one is there: a field of another one says."""
    for selector, values in item.when:
        name, _, field = selector.partition(".")
        register: Any = item.block.layout.declarations[name]
        value = _word(config, base + register.offset, register.size)
        if int(register.field(field).extract(value)) not in values:
            return False
    return True


# How long a capability says it is, where not all of its kind are alike. Given what lies before the next capability,
# which may be cut short anywhere.


def _msi_length(data: bytes) -> int:
    control = _word(data, 2, 2)
    return (12, 16, 20, 24)[(control >> 7 & 1) + 2 * (control >> 8 & 1)]


def _express_length(data: bytes) -> int:
    # Version 1 of an endpoint ends with the link registers. Spec: PCI Express Base 1.1, 7.8.
    return 0x3C if data[2:3] and data[2] & 0xF > 1 else 0x14


def _access_control_length(data: bytes) -> int:
    if not _word(data, 4, 2) & 1 << 5:  # egress control
        return 8
    bits = _word(data, 5, 1) or 256
    return 8 + 4 * -(-bits // 32)


def _resizable_length(data: bytes) -> int:
    return 4 + 8 * (_word(data, 8) >> 5 & 7)


def _tph_length(data: bytes) -> int:
    capability = _word(data, 4)
    in_capability = capability >> 9 & 3 == 1
    return 12 + 2 * ((capability >> 16 & 0x7FF) + 1) * in_capability


_LENGTHS: Mapping[tuple[int, bool], Callable[[bytes], int]] = {
    (0x05, False): _msi_length,
    (0x09, False): lambda data: _word(data, 2, 1),
    (0x10, False): _express_length,
    (0x0B, True): lambda data: _word(data, 4) >> 20,
    (0x0D, True): _access_control_length,
    (0x15, True): _resizable_length,
    (0x17, True): _tph_length,
    (0x23, True): lambda data: _word(data, 4) >> 20,
}
