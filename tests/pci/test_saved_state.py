"""A function saved and put back: everything declared comes back, and what does not fit changes nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_user.errors import DefinitionError, InvalidAccess
from vfio_user.pci import (
    COUNTER,
    RO,
    RW1C,
    FunctionEvents,
    MemoryBar,
    Msi,
    MsiX,
    PciAttributes,
    PciExpress,
    PciFunction,
    PowerManagement,
    Register,
    RegisterBlock,
    RegisterFile,
    ResizableBar,
    VendorSpecific,
    build_function,
)
from vfio_user.pci.saved_state import FunctionState
from vfio_user.regions import CallbackRegion, MemoryRegion, Region

MIB = 1 << 20


class Channel(RegisterBlock):
    size = 0x10
    base = Register(0x00, width=64)
    status = Register(0x08, access=RW1C)


class Registers(RegisterBlock):
    identity = Register(0x00, access=RO, reset=0x1234)
    control = Register(0x04)
    reads = Register(0x08, access=COUNTER)
    outputs = Register(0x10, count=4)
    channels = RegisterFile(Channel, 0x40, count=2, stride=0x10)


class Own(Region):
    """A region that knows how to save itself."""

    size = 16

    def __init__(self) -> None:
        self.value = 0

    def read(self, offset: int, size: int) -> int:
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        self.value = value

    def save_state(self) -> object:
        return {"value": self.value}

    def load_state(self, state: Any) -> None:
        self.value = state["value"]


class Card(PciAttributes):
    """One of everything that holds state."""

    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    pm = PowerManagement()
    msi = Msi(vectors=4)
    msix = MsiX(vectors=3)
    express = PciExpress()
    notes = VendorSpecific(b"notebook", writable=True)
    sizes = ResizableBar({2: [MIB, 2 * MIB, 4 * MIB]})
    bar0 = MemoryBar(size=4096, registers=Registers)
    bar1 = MemoryBar(size=16, region=lambda _: Own())
    bar2 = MemoryBar(size=4 * MIB, width=64)
    bar4 = MemoryBar(size=4096, shared=True)

    function: PciFunction


def build(kind: type[PciAttributes] = Card) -> Any:
    device = kind()
    device.function = build_function(device, FunctionEvents())  # type: ignore[attr-defined]
    return device


def move(source: Any, destination: Any) -> None:
    """Saves one, over JSON as a file would, and loads the other; memory is copied."""
    ours, theirs = FunctionState(source.function), FunctionState(destination.function)
    theirs.check(json.loads(json.dumps(ours.save())))()
    assert ours.memories.keys() == theirs.memories.keys()
    for name, memory in ours.memories.items():
        theirs.memories[name][:] = memory


def everything(device: Any) -> dict[str, bytes]:
    function = device.function
    shown = {
        f"bar{index}": bytes(region.read_bytes(0, min(region.size, 4096))) for index, region in function.regions.items()
    }
    return shown | {"config": function.config.read_bytes(0, function.config.size)}


regions = st.sampled_from([0, 1, 2, 4, 5, 7])
writes = st.lists(st.tuples(regions, st.integers(0, 0x3FF), st.integers(0, 0xFFFF_FFFF)), max_size=40)


def drive(device: Any, accesses: list[tuple[int, int, int]]) -> None:
    """Writes of four bytes anywhere in the first page of every region."""
    function = device.function
    for index, word, value in accesses:
        region = function.config if index == 7 else function.regions.get(index)
        if region is not None:
            region.write(word * 4 % region.size, 4, value)


@settings(max_examples=40)
@given(writes, writes)
def test_a_function_in_any_state_comes_back(
    before: list[tuple[int, int, int]], after: list[tuple[int, int, int]]
) -> None:
    source, destination = build(), build()
    drive(source, before)
    move(source, destination)
    assert everything(destination) == everything(source)
    # And not only looks alike: masks, hooks and sizes are those of the source, too.
    drive(source, after)
    drive(destination, after)
    assert everything(destination) == everything(source)


def test_what_the_destination_did_before_is_gone() -> None:
    source, destination = build(), build()
    drive(destination, [(index, word, 0xFFFF_FFFF) for index in (0, 2, 4, 5, 7) for word in range(16)])
    move(source, destination)
    assert everything(destination) == everything(source)


def test_resized_bars_decode_their_new_size() -> None:
    source, destination = build(), build()
    offset = source.sizes.offset
    source.function.config.write(offset + 8, 4, 0 << 8 | 2)  # 1 MiB
    source.function.config.write(0x18, 4, 0xFEB0_0000)
    move(source, destination)
    assert destination.sizes.current_size(2) == MIB
    assert destination.function.bar_address(2) == source.function.bar_address(2) == 0xFEB0_0000
    destination.function.config.write(0x18, 4, 0xFFFF_FFFF)
    assert destination.function.config.read(0x18, 4) == 0xFFF0_0004


def test_names_of_parts() -> None:
    state = FunctionState(build().function)
    saved = state.save()
    assert set(saved["registers"]) == {"header", "pm", "msi", "msix", "express", "notes", "sizes", "bar0"}
    assert set(saved["tables"]) == {"bar5+0x0"}
    assert set(saved["regions"]) == {"bar1"}
    assert (
        {name: len(memory) for name, memory in state.memories.items()}
        == {
            "bar2": 4 * MIB,
            "bar5": 4096,
            "bar4": 4096,
            "notes.contents": 8,
        }
        == saved["memories"]
    )


def test_no_hook_runs_and_no_event_is_sent() -> None:
    events: list[str] = []

    class Watching(Card):
        @Card.bar0.on_write("control")
        def note(self) -> None:
            events.append("written")

    source, destination = build(Watching), Watching()
    destination.function = build_function(
        destination,
        FunctionEvents(on_command=lambda *_: events.append("command"), on_msix=lambda *_: events.append("x")),
    )
    source.function.config.write(4, 2, 7)
    source.bar0.write(4, 4, 9)
    events.clear()
    move(source, destination)
    assert events == []
    assert destination.bar0.control == 9


Spoil = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda state: state.update(ids=[0x1234, 0x9999]), r"its ids are \[4660, 39321\], not \[4660, 22136\]"),
        (lambda state: state["bars"].update(bar4=8192), "its bars are .*8192.*, not .*4096"),
        (lambda state: state["registers"].pop("pm"), "its registers are .* not .*'pm'"),
        (lambda state: state["registers"].update(other={}), "its registers are .*'other'"),
        (lambda state: state.pop("registers"), "its registers are None"),
        (lambda state: state["registers"]["bar0"].update(version=2), "saved state of Registers: version 2"),
        (lambda state: state["registers"]["bar0"]["registers"].pop("control"), "register 'control' is missing"),
        (lambda state: state["registers"]["header"]["registers"].update(latency_timer=256), "'latency_timer' = 256"),
        (lambda state: state["tables"].update({"bar5+0x0": "00"}), r"bar5\+0x0: it is no MSI-X table of 3 vectors"),
        (lambda state: state["tables"].update({"bar5+0x0": "xy" * 48}), "no MSI-X table"),
        (lambda state: state["tables"].update({"bar5+0x0": 7}), "no MSI-X table"),
        (lambda state: state["memories"].update(bar2=1), "saved state of bar2: 1 bytes of memory, not 4194304"),
        (lambda state: state["regions"].clear(), r"its regions are \[\], not \['bar1'\]"),
    ],
)
def test_what_does_not_fit_changes_nothing(spoil: Spoil, why: str) -> None:
    source, destination = build(), build()
    drive(source, [(0, 1, 7), (7, 1, 7), (2, 0, 9)])
    state = copy.deepcopy(FunctionState(source.function).save())
    spoil(state)
    before = everything(destination)
    with pytest.raises(InvalidAccess, match=why):
        FunctionState(destination.function).check(state)
    assert everything(destination) == before


@pytest.mark.parametrize("state", [None, [], "text", 7])
def test_no_state_at_all(state: object) -> None:
    with pytest.raises(InvalidAccess, match="no mapping"):
        FunctionState(build().function).check(state)


def test_a_region_nobody_can_save() -> None:
    class Callbacks(PciAttributes):
        vendor_id, device_id, class_code = 1, 2, 0xFF0000
        bar0 = MemoryBar(size=4096, region=lambda _: CallbackRegion(4096, read=lambda *_: 0))

    with pytest.raises(DefinitionError, match="bar0 is a CallbackRegion, which cannot be saved: give it save_state"):
        FunctionState(build(Callbacks).function)


def test_memory_placed_in_a_block_inside_a_block() -> None:
    device = build()
    device.bar0.channels[1].place(0xC, MemoryRegion(4), "scratch")
    assert "bar0.channels[1].scratch" in FunctionState(device.function).memories
