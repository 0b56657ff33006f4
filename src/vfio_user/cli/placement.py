"""What ``--device`` says: which device, with which options, and how QEMU is to plug it in.

``DEVICE[@SLOT[.FUNCTION]][,NAME=VALUE]...``: an option of the device, or, as ``qemu.NAME``, a property of QEMU's
``vfio-user-pci``: ``romfile``, ``bus``, ``bootindex`` and the rest of what it has. Whether functions share a slot, and
which option ROM is run, is the client's decision; a device need not know of it.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

__all__ = ["DeviceRequest", "parse_device", "share_slots"]

_ADDRESS = re.compile(r"(?P<name>.+)@(?P<address>[0-9a-fA-F]{1,2}(\.[0-7])?)")

#: Properties that are ours to give.
_OURS = {"driver", "socket"}

#: Properties that are text, even if they look like a number.
_TEXTS = {"addr", "bus", "id", "romfile", "failover_pair_id", "sriov-pf"}

_SWITCHES = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


@dataclass(frozen=True)
class DeviceRequest:
    """A device somebody asked for.

    Attributes:
        name: of the device, or where its class is.
        settings: its options, as text.
        properties: how QEMU is to plug it in.
    """

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, object] = field(default_factory=dict)

    @property
    def slot(self) -> tuple[str, str] | None:
        """The bus and the slot it is to be in; None where QEMU chooses."""
        address = self.properties.get("addr")
        if not isinstance(address, str):
            return None
        return str(self.properties.get("bus", "")), f"{int(address.partition('.')[0], 16):02x}"


def parse_device(text: str) -> DeviceRequest:
    """Reads one; two commas are one comma of a value, as in QEMU.

    Raises:
        argparse.ArgumentTypeError: a word of it is no ``name=value``; a property is none to be given.
    """
    name, *words = [word.replace("\0", ",") for word in text.replace(",,", "\0").split(",")]
    settings: dict[str, str] = {}
    properties: dict[str, object] = {}
    if found := _ADDRESS.fullmatch(name):
        name, properties["addr"] = found["name"], found["address"]
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise argparse.ArgumentTypeError(f"{word!r} of {text!r} is not of the form name=value")
        if key.startswith("qemu."):
            key = key.removeprefix("qemu.")
            properties[key] = _property(key, value)
        else:
            settings[key] = value
    return DeviceRequest(name, settings, properties)


def _property(key: str, text: str) -> object:
    """A value as QEMU's JSON wants it: it takes neither text for a number nor a number for a switch."""
    if key in _OURS or not key:
        raise argparse.ArgumentTypeError(f"qemu.{key} is not to be given: the device's socket is ours")
    if key == "addr" and not re.fullmatch(r"[0-9a-fA-F]{1,2}(\.[0-7])?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no place on a bus: it must be a slot and function, as in 05.1")
    if key in _TEXTS:
        return text
    if text in _SWITCHES:
        return _SWITCHES[text]
    try:
        return int(text, 0)
    except ValueError:
        return text


def share_slots(requests: Sequence[DeviceRequest], others: Sequence[str] = ()) -> list[DeviceRequest]:
    """Says of functions that share a slot that they do, as PCI has it: in each of them, unless they say themselves.

    Args:
        requests: the devices.
        others: QEMU's own devices, as ``-device`` takes them, which may be in the same slots.
    """
    slots = Counter(request.slot for request in requests if request.slot is not None)
    for text in others:
        properties = dict(word.partition("=")[::2] for word in text.split(",")[1:])
        if "addr" in properties:
            slots[properties.get("bus", ""), f"{int(properties['addr'].partition('.')[0], 16):02x}"] += 1
    return [
        replace(request, properties={"multifunction": True, **request.properties})
        if request.slot is not None and slots[request.slot] > 1
        else request
        for request in requests
    ]
