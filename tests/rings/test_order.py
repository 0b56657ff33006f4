"""Barriers: what can be said of them without another kind of machine."""

from __future__ import annotations

import platform

import pytest

from vfio_user.rings import order


@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "i686", "s390x"])
def test_machines_in_order_need_nothing(machine: str) -> None:
    assert order.needed_barrier(machine) is not order.full_barrier
    order.needed_barrier(machine)()


@pytest.mark.parametrize("machine", ["aarch64", "riscv64", "ppc64le", "loongarch64", "armv7l", "something new"])
def test_all_others_get_the_barrier(machine: str) -> None:
    assert order.needed_barrier(machine) is order.full_barrier


def test_this_machine_has_what_it_needs() -> None:
    needs = order.needed_barrier(platform.machine())
    assert order.load_barrier is needs
    assert order.store_barrier is needs
    order.full_barrier()
