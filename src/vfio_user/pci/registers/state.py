"""Saving and loading what a block holds: plain data, fit for JSON, by register name.

Names, not offsets: moving a register does not make old files unreadable, and a file shows what is in it. A file is
checked whole before anything of it is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vfio_user.errors import InvalidAccess
from vfio_user.pci.registers._text import nearest

if TYPE_CHECKING:
    from vfio_user.pci.registers.block import RegisterBlock

__all__ = ["check_block", "load_block", "save_block"]


def save_block(block: RegisterBlock) -> dict[str, Any]:
    """See ``RegisterBlock.save_state``."""
    registers: dict[str, int | list[int]] = {}
    for name, register in type(block).layout.registers.items():
        values = block._values[register.slot : register.slot + register.elements]
        registers[name] = values[0] if register.count is None else values
    state: dict[str, Any] = {
        "block": type(block).__name__,
        "version": block.state_version,
        "registers": registers,
    }
    inner = {name: _save_inner(blocks) for name, blocks in _inner(block).items()}
    if inner:
        state["blocks"] = inner
    return state


def _save_inner(blocks: list[RegisterBlock]) -> list[dict[str, Any]]:
    return [save_block(block) for block in blocks]


def _inner(block: RegisterBlock) -> dict[str, list[RegisterBlock]]:
    """The blocks inside a block, by the name of their file or placement."""
    inner = {
        name: [block.element(file, index) for index in range(file.elements)]
        for name, file in type(block).layout.files.items()
    }
    inner.update({placed.name: [placed.block] for placed in block.placements if placed.block is not None})
    return inner


def load_block(block: RegisterBlock, state: object) -> None:
    """See ``RegisterBlock.load_state``."""
    check_block(block, state)()


def check_block(block: RegisterBlock, state: object) -> Callable[[], None]:
    """The first half of ``RegisterBlock.load_state``, for who loads several blocks, all or none.

    Returns:
        The second half, which stores, and cannot fail.

    Raises:
        InvalidAccess: see there.
    """
    plan: list[tuple[RegisterBlock, int, int]] = []
    _check(block, state, plan)

    def store() -> None:
        for target, slot, value in plan:
            target._values[slot] = value

    return store


def _check(block: RegisterBlock, state: object, plan: list[tuple[RegisterBlock, int, int]]) -> None:
    """Adds what ``state`` says to ``plan``, as (block, slot, value)."""
    name = type(block).__name__
    where = f"saved state of {name}" + (f" ({block.path.rstrip('.')})" if block.path else "")
    if not isinstance(state, dict) or not {"block", "version", "registers"} <= state.keys():
        raise InvalidAccess(f"{where}: not a saved register block: it has no 'block', 'version' and 'registers'")
    if state["block"] != name:
        raise InvalidAccess(f"{where}: it was saved by {state['block']!r}")
    registers = state["registers"]
    if not isinstance(registers, dict):
        raise InvalidAccess(f"{where}: its registers are no mapping of names to values")
    if state["version"] != block.state_version:
        registers = block.upgrade_state(state["version"], dict(registers))
    layout = type(block).layout
    for missing in layout.registers.keys() - registers.keys():
        raise InvalidAccess(
            f"{where}, version {state['version']}: register {missing!r} is missing; if the class has gained it, raise "
            f"state_version and give it a value in upgrade_state"
        )
    for register_name, saved in registers.items():
        register = layout.registers.get(register_name)
        if register is None:
            raise InvalidAccess(
                f"{where}: there is no register {register_name!r}: {nearest(register_name, layout.registers)}"
            )
        values = saved if register.count is not None else [saved]
        if not isinstance(values, list) or len(values) != register.elements:
            raise InvalidAccess(f"{where}: {register_name!r} needs {register.elements} values")
        for index, value in enumerate(values):
            if type(value) is not int or not 0 <= value <= register.mask:
                raise InvalidAccess(f"{where}: {register_name!r} = {value!r} is no {register.width}-bit value")
            plan.append((block, register.slot + index, value))
    inner = _inner(block)
    saved_inner = state.get("blocks", {})
    if not isinstance(saved_inner, dict):
        raise InvalidAccess(f"{where}: its blocks are no mapping of names to states")
    if saved_inner.keys() != inner.keys():
        raise InvalidAccess(f"{where}: it has the blocks {sorted(saved_inner)}, not {sorted(inner)}")
    for inner_name, blocks in inner.items():
        states = saved_inner[inner_name]
        if not isinstance(states, list) or len(states) != len(blocks):
            raise InvalidAccess(f"{where}: {inner_name!r} needs {len(blocks)} blocks")
        for inner_block, inner_state in zip(blocks, states, strict=True):
            _check(inner_block, inner_state, plan)
