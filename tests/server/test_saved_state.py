"""A device's state as bytes: what is in them, what comes back, and every way they can be wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_user.errors import DefinitionError, InvalidAccess
from vfio_user.pci import MemoryBar, Register, RegisterBlock
from vfio_user.server.pci_device import PciDevice
from vfio_user.server.saved_state import StateWriter

PAGE = 4096
PIECE = 1 << 16
RECORD = struct.Struct("<IIQ")


class Registers(RegisterBlock):
    value = Register(0x00)


class Card(PciDevice):
    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    migratable = True
    saved_attributes = ("kept",)
    bar0 = MemoryBar(size=PAGE, registers=Registers)
    bar1 = MemoryBar(size=4 * PIECE)
    bar2 = MemoryBar(size=PAGE)

    def __init__(self, kept: Any = None) -> None:
        super().__init__()
        self.kept = kept


def records(state: bytes) -> list[tuple[int, int, bytes]]:
    """(memory, offset, bytes) of each record."""
    found, at = [], 16
    while at < len(state):
        number, size, offset = RECORD.unpack_from(state, at)
        found.append((number, offset, state[at + 16 : at + 16 + size]))
        at += 16 + size
    return found


def build(parts: list[tuple[int, int, bytes]], *, preamble: bytes | None = None) -> bytes:
    data = struct.pack("<8sII", b"vfu-stat", 1, 0) if preamble is None else preamble
    return data + b"".join(RECORD.pack(number, len(piece), offset) + piece for number, offset, piece in parts)


def test_what_is_in_it() -> None:
    card = Card((1, "two"))
    card.bar0.value = 7
    card.bar1.memory[2 * PIECE + 5] = 9
    state = card.save_state()
    assert state[:16] == struct.pack("<8sII", b"vfu-stat", 1, 0)
    (number, offset, piece), description, end = records(state)
    assert (number, offset, piece) == (0, 2 * PIECE, bytes(5) + b"\x09" + bytes(PIECE - 6))
    assert description[:2] == (0xFFFF_FFFE, 0)
    assert end == (0xFFFF_FFFF, 0, b"")
    content = json.loads(description[2])
    assert (content["device"], content["version"]) == ("Card", 1)
    assert content["function"]["registers"]["bar0"]["registers"] == {"value": 7}
    assert content["attributes"] == {"kept": {"tuple": [1, "two"]}}
    assert content["interrupts"] == {"intx_level": False, "pending": {"MSI": 0, "MSIX": 0}}


def test_loading_makes_a_device_the_same() -> None:
    source, destination = Card(5), Card()
    source.bar0.value = 7
    source.bar1.memory[:5] = b"hello"
    source.bar2.memory[-1] = 1
    source.function.config.write(4, 2, 6)
    source.raise_interrupt()
    destination.bar1.memory[3 * PIECE] = 1
    destination.load_state(source.save_state())
    assert destination.save_state() == source.save_state()
    assert destination.kept == 5
    assert destination.bar1.memory == source.bar1.memory
    assert destination.dma.enabled
    assert destination.interrupts.intx_level
    assert destination.function.config.read(6, 2) & 8


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda values: (
        st.lists(values, max_size=4)
        | st.lists(values, max_size=4).map(tuple)
        | st.dictionaries(st.text(), values, max_size=4)
        | st.binary().map(bytearray)
    ),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None)
@given(plain)
def test_attributes_come_back_as_they_were(value: Any) -> None:
    source, destination = Card(value), Card()
    destination.load_state(source.save_state())
    assert destination.kept == value
    assert type(destination.kept) is type(value)


@pytest.mark.parametrize("value", [{1, 2}, object(), {1: 2}, [complex(1, 2)], {"a": {3: 4}}])
def test_attributes_that_cannot_be_saved(value: Any) -> None:
    with pytest.raises(DefinitionError, match=r"saved attribute kept.* is a .*; what can be saved is"):
        Card(value).save_state()


def test_an_attribute_keeps_its_type() -> None:
    state = Card(5).save_state()
    with pytest.raises(InvalidAccess, match="kept is a int, not a str"):
        Card("text").load_state(state)
    device = Card(6)
    device.load_state(Card(None).save_state())
    assert device.kept is None


def spoiled(change: Callable[[dict[str, Any]], object]) -> bytes:
    parts = records(Card(5).save_state())
    content = json.loads(parts[-2][2])
    change(content)
    return build([*parts[:-2], (0xFFFF_FFFE, 0, json.dumps(content).encode()), parts[-1]])


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


END = (0xFFFF_FFFF, 0, b"")

WRONG = [
    (b"", "0 bytes are none"),
    (b"short", "5 bytes are none"),
    (build([END], preamble=b"something else.."), "begins with b'somethin', not with b'vfu-stat'"),
    (build([END], preamble=struct.pack("<8sII", b"vfu-stat", 2, 0)), "version 2 of the format; this library reads 1"),
    (build([]), "cut off after 16 bytes"),
    (build([END]), "no description"),
    (build([(0xFFFF_FFFE, 0, b"[]"), END]), "no description"),
    (build([(0xFFFF_FFFE, 0, b"{"), END]), "no JSON"),
    (build([(0xFFFF_FFFE, 0, b"[" * 100_000), END]), "no JSON"),
    (build([END]) + b"x", "1 bytes follow its end"),
    (build([(2, 0, b"x"), END]), r"\[0x0, 0x1\) of memory 2 is none"),
    (build([(1, PAGE - 1, b"xy"), END]), r"\[0xfff, 0x1001\) of memory 1 is none"),
    (build([(0, 1 << 63, b"x"), END]), "of memory 0 is none"),
    (spoiled(lambda state: state.update(device="Other")), "it is of a 'Other', not of a 'Card'"),
    (spoiled(lambda state: state.update(version=2)), r"version 2, this class reads 1 \(state_version\)"),
    (spoiled(lambda state: state.pop("function")), "no mapping"),
    (spoiled(lambda state: state.pop("interrupts")), "saved interrupts"),
    (spoiled(lambda state: state.pop("attributes")), r"its attributes are None, not \['kept'\]"),
    (spoiled(lambda state: state["attributes"].update(more=1)), r"its attributes are \['kept', 'more'\]"),
    (spoiled(lambda state: state["attributes"].update(kept={"bytes": "xy"})), "Card.kept is no value"),
    (spoiled(lambda state: state["attributes"].update(kept={"set": []})), "Card.kept is no value"),
    (spoiled(lambda state: state["attributes"].update(kept={})), "Card.kept is no value"),
    (spoiled(lambda state: state["attributes"].update(kept=nested(900))), "kept is nested too deep"),
]


@pytest.mark.parametrize(("state", "why"), WRONG, ids=[why for _, why in WRONG])
def test_what_is_no_state_changes_nothing(state: bytes, why: str) -> None:
    card = Card(5)
    card.bar0.value = 3
    card.bar1.memory[7] = 7
    before = card.save_state()
    with pytest.raises(InvalidAccess, match=why):
        card.load_state(state)
    assert card.save_state() == before


def test_a_device_refuses_attributes_before_anything_has_changed() -> None:
    class Choosy(Card):
        def check_loaded(self, attributes: Mapping[str, Any]) -> None:
            if attributes["kept"] != self.kept:
                raise InvalidAccess("made with another")

    Choosy.__name__ = "Card"
    state = Card(5).save_state()
    Choosy(5).load_state(state)
    card = Choosy(6)
    card.bar0.value = 3
    with pytest.raises(InvalidAccess, match="made with another"):
        card.load_state(state)
    assert (card.kept, card.bar0.value) == (6, 3)


def test_every_truncation_is_noticed() -> None:
    state = Card(5).save_state()
    card = Card(6)
    for length in range(len(state)):
        with pytest.raises(InvalidAccess):
            card.load_state(state[:length])
    assert card.kept == 6


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_change_is_refused_or_loads(data: st.DataObject) -> None:
    state = bytearray(Card(5).save_state())
    state[data.draw(st.integers(0, len(state) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    card = Card(6)
    try:
        card.load_state(state)
    except InvalidAccess:
        assert card.kept == 6


# Memory that is sent while it changes.


def test_what_changed_is_sent_again() -> None:
    memory = bytearray(3 * PIECE)
    memory[0] = memory[PIECE] = 1
    writer = StateWriter(dict, [memory], tuple)
    assert [(number, offset) for number, offset, _ in records(b"".join(writer.rehearse()))] == [(0, 0), (0, PIECE)]
    memory[PIECE] = 0
    memory[2 * PIECE] = 5
    # The preamble was sent, so these are records alone.
    rest = records(bytes(16) + b"".join(writer.finish()))
    assert [(number, offset, any(piece)) for number, offset, piece in rest[:-2]] == [
        (0, PIECE, False),
        (0, 2 * PIECE, True),
    ]
    assert [number for number, _, _ in rest[-2:]] == [0xFFFF_FFFE, 0xFFFF_FFFF]


def test_a_rehearsal_broken_off() -> None:
    memory = bytearray(b"\1" * 3 * PIECE)
    writer = StateWriter(dict, [memory], tuple)
    rehearsal = writer.rehearse()
    sent = next(rehearsal) + next(rehearsal)
    rest = records(sent + b"".join(writer.finish()))
    assert [offset for _, offset, _ in rest[:-2]] == [0, PIECE, 2 * PIECE]


# Chunks of the device's own.


class Chunked(PciDevice):
    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    migratable = True
    chunks_limit = 1 << 20
    saved_attributes = ("number",)

    def __init__(self) -> None:
        super().__init__()
        self.number = 1
        self.chunks: list[bytes] = []
        self.loaded: list[tuple[int, bytes]] = []

    def save_chunks(self) -> Iterator[bytes]:
        left = self.chunks
        while True:
            while left:
                yield left.pop(0)
            yield b""

    def load_chunk(self, chunk: memoryview) -> None:
        self.loaded.append((self.number, bytes(chunk)))


def test_chunks_come_in_their_order_after_the_attributes() -> None:
    source, destination = Chunked(), Chunked()
    source.number = 7
    source.chunks = [b"a", bytes(100_000)]
    destination.load_state(source.save_state())
    assert destination.loaded == [(7, b"a"), (7, bytes(100_000))]


def test_the_end_goes_on_with_what_is_left() -> None:
    source, destination = Chunked(), Chunked()
    source.chunks = [b"a", b"b"]
    writer = source.state.writer()
    rehearsal = writer.rehearse()
    data = [next(rehearsal), next(rehearsal), next(rehearsal)]
    assert next(rehearsal) == b""
    source.chunks.append(b"c")
    data.append(next(rehearsal))
    del rehearsal
    source.chunks.append(b"d")
    destination.load_state(b"".join([*data, *writer.finish()]))
    assert [chunk for _, chunk in destination.loaded] == [b"a", b"b", b"c", b"d"]


def test_chunks_that_come_to_an_end() -> None:
    class Finite(Chunked):
        def save_chunks(self) -> Iterator[bytes]:
            yield b"all"

    destination = Finite()
    writer = Finite().state.writer()
    destination.load_state(b"".join([*writer.rehearse(), *writer.finish()]))
    assert [chunk for _, chunk in destination.loaded] == [b"all"]


def test_a_device_that_has_no_use_for_chunks() -> None:
    class Other(Chunked):
        load_chunk = PciDevice.load_chunk

    source = Other()
    source.chunks = [b"end"]
    with_a_chunk = source.save_state()
    with pytest.raises(InvalidAccess, match="a chunk of 3 bytes, and Other has no load_chunk"):
        Other().load_state(with_a_chunk)


def test_chunks_count_for_the_largest_state() -> None:
    class Unlimited(Chunked):
        chunks_limit = 1 << 30

    assert Unlimited().state.max_size - Chunked().state.max_size == (1 << 30) - (1 << 20)
