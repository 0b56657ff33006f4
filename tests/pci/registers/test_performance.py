"""The shape of the costs: ratios that hold on a busy machine too."""

from __future__ import annotations

from collections.abc import Callable

from bench.registers import make_block, nanoseconds
from vfio_user.pci.registers import Field, Register, RegisterBlock


def _ratio(dear: Callable[[], object], cheap: Callable[[], object], number: int) -> float:
    """The best of many short measurements, taken in turn so that a busy moment hits both."""
    best = [float("inf"), float("inf")]
    for _ in range(15):
        for index, function in enumerate((dear, cheap)):
            best[index] = min(best[index], nanoseconds(function, rounds=1, number=number))
    return best[0] / best[1]


def test_an_access_costs_the_same_among_many_registers() -> None:
    small, large = make_block(10)(), make_block(1000)()
    assert _ratio(lambda: large.read(0x20, 4), lambda: small.read(0x20, 4), 2000) < 2
    assert _ratio(lambda: large.write(0x20, 4, 5), lambda: small.write(0x20, 4, 5), 2000) < 2


def test_a_class_costs_in_proportion_to_its_registers() -> None:
    assert _ratio(lambda: make_block(500), lambda: make_block(50), 1) < 10 * 3


def test_a_plain_access_ends_in_one_call_that_touches_one_list() -> None:
    """Not a time: what is left once the place is known looks nothing up by name."""

    class Block(RegisterBlock):
        plain = Register(0x0)
        fields = Register(0x4, fields=[Field("all_", (31, 0))])

    block = Block()
    for offset in (0x0, 0x4):
        reader, writer = block._readers[offset << 4 | 4], block._writers[offset << 4 | 4]
        assert reader.__code__.co_names == writer.__code__.co_names == ()
