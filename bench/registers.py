"""``python -m bench.registers``: what an access through a register block costs, and what declaring one costs."""

from __future__ import annotations

import statistics
import time
import timeit
from collections.abc import Callable

from bench.report import Figure, format_table
from vfio_user.pci.registers import RW1C, Field, Register, RegisterBlock, on_write

__all__ = ["make_block", "measure", "nanoseconds"]

#: Nanoseconds of a plain 32-bit access, at most: a tenth of what a posted write costs on its way through the socket.
ACCESS_TARGET = 300.0

#: Milliseconds to make a class of 1,000 registers, at most.
CLASS_TARGET = 50.0

#: How much dearer an access may be among 1,000 registers than among 10.
SIZE_TARGET = 1.2


class _Features(RegisterBlock):
    plain = Register(0x0)
    status = Register(0x4, access=RW1C)
    doorbell = Register(0x8)
    control = Register(0xC, fields=[Field("enable", 0), Field("mode", (3, 1))])
    bytes_ = Register(0x10, width=8, count=8)

    @on_write("doorbell")
    def ring(self, new: int) -> None:
        """As little as a handler can do."""


def make_block(registers: int) -> type[RegisterBlock]:
    """A class of that many plain 32-bit registers."""
    return type("Block", (RegisterBlock,), {f"r{index}": Register(4 * index) for index in range(registers)})


def nanoseconds(function: Callable[[], object], rounds: int = 7, number: int = 20_000) -> float:
    """What one call costs, the call of ``function`` itself included: the best of several rounds."""
    return min(timeit.repeat(function, repeat=rounds, number=number)) / number * 1e9


def measure(rounds: int, say: Callable[[str], None]) -> tuple[list[Figure], dict[str, object]]:
    """Measures everything.

    Returns:
        Figures, and all samples.
    """
    say(f"registers: {rounds} rounds")
    empty = _loop("pass", {}, rounds)

    def cost(statement: str, **names: object) -> float:
        return _loop(statement, names, rounds) - empty

    small, large = make_block(10)(), make_block(1000)()
    reads = [cost("read(0x20, 4)", read=block.read) for block in (small, large)]
    writes = [cost("write(0x20, 4, 5)", write=block.write) for block in (small, large)]
    block = _Features()
    others = {
        "write that clears bits": cost("write(0x4, 4, 5)", write=block.write),
        "write with a handler": cost("write(0x8, 4, 5)", write=block.write),
        "read of one byte of four": cost("read(0x1, 1)", read=block.read),
        "read of eight registers at once": cost("read(0x10, 8)", read=block.read),
        "block.plain, in device code": cost("block.plain", block=block),
        "block.plain = 5, in device code": cost("block.plain = 5", block=block),
        "block.control.mode, in device code": cost("block.control.mode", block=block),
        "block.control.mode = 5, in device code": cost("block.control.mode = 5", block=block),
    }
    class_times = []
    for _ in range(rounds):
        start = time.perf_counter()
        make_block(1000)
        class_times.append((time.perf_counter() - start) * 1e3)
    figures = [
        Figure("read of a plain register", reads[1], "ns", ACCESS_TARGET, "4 bytes, in a block of 1,000"),
        Figure("  against a block of 10", reads[1] / reads[0], "x", SIZE_TARGET),
        Figure("write of a plain register", writes[1], "ns", ACCESS_TARGET, "4 bytes, in a block of 1,000"),
        Figure("  against a block of 10", writes[1] / writes[0], "x", SIZE_TARGET),
        *(Figure(name, value, "ns") for name, value in others.items()),
        Figure("class of 1,000 registers", statistics.median(class_times), "ms", CLASS_TARGET, "declared and checked"),
    ]
    return figures, {"registers": {"read_ns": reads, "write_ns": writes, "class_ms": class_times} | others}


def _loop(statement: str, names: dict[str, object], rounds: int, number: int = 100_000) -> float:
    return min(timeit.repeat(statement, globals=names, repeat=rounds, number=number)) / number * 1e9


def main() -> None:
    """Prints the figures."""
    figures, _ = measure(7, print)
    print(format_table([figure.cells() for figure in figures]))


if __name__ == "__main__":
    main()
