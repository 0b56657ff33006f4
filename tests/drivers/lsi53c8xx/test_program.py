"""The program of ``ScsiInitiator``: where its parts are; what it does is seen in ``test_initiator``."""

from __future__ import annotations

import struct

from vfio_user.drivers.lsi53c8xx.program import SLOT_SIZE, Slot, assemble, make_slot
from vfio_user.hardware.lsi53c8xx.scripts import BlockMove, TransferControl, decode

BASE, SLOTS = 0x20_0000, 0x30_0000


def test_the_parts_are_where_it_says() -> None:
    code, labels = assemble(BASE, SLOTS)
    assert len(code) < 0x1000
    words = struct.unpack(f"<{len(code) // 4}I", code)
    assert words[1] == SLOTS
    assert words[(labels["wait address"] - BASE) // 4] == labels["wait"]
    for name in ("data in", "data out", "status", "selected"):
        assert isinstance(decode(words[(labels[name] - BASE) // 4]), BlockMove)
    # Nothing jumps to where nothing is.
    at = 0
    while BASE + 4 * at < labels["wait address"]:
        if isinstance(decode(words[at]), TransferControl) and words[at] >> 27 == 0b10000:
            assert words[at + 1] == SLOTS or words[at + 1] in labels.values()
        at += 2


def test_a_slot_is_code() -> None:
    _, labels = assemble(BASE, SLOTS)
    code = make_slot(SLOTS, SLOTS + SLOT_SIZE, labels)
    assert len(code) == SLOT_SIZE
    assert struct.unpack_from("<I", code, Slot.ENTRY)[0] == labels["wait"]
    assert struct.unpack_from("<II", code, Slot.NEXT) == (SLOTS + SLOT_SIZE, 0)
