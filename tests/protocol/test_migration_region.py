"""The first migration protocol's numbers: registers, states and the ways between them."""

from __future__ import annotations

import itertools

from vfio_user.protocol.migration_region import MIGRATION_REGION_TYPE, TRANSITIONS, DeviceState, MigrationRegister


def test_the_registers() -> None:
    assert [(int(register), register.width) for register in MigrationRegister] == [
        (0, 4),
        (4, 4),
        (8, 8),
        (16, 8),
        (24, 8),
    ]
    assert MIGRATION_REGION_TYPE == (3, 1)


def test_the_bits_of_the_states() -> None:
    running, saving, resuming = 1, 2, 4
    assert {state.name: int(state) for state in DeviceState} == {
        "STOPPED": 0,
        "RUNNING": running,
        "STOP_AND_COPY": saving,
        "PRE_COPY": running | saving,
        "RESUMING": resuming,
        "ERROR": saving | resuming,
    }


def test_the_ways() -> None:
    allowed = {old: {int(new) for new in DeviceState if (old, new) in TRANSITIONS} for old in DeviceState}
    assert allowed == {0: {1}, 1: {0, 2, 3, 4, 6}, 2: {0, 1, 6}, 3: {0, 1, 2, 6}, 4: {1, 6}, 6: set()}
    assert len(TRANSITIONS) == sum(len(goals) for goals in allowed.values())
    assert all(old != new for old, new in itertools.product(DeviceState, DeviceState) if (old, new) in TRANSITIONS)
