"""MIG_DATA_READ and MIG_DATA_WRITE, and the ways between the states of migration."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.codecs import Case, CodecTests
from tests.support.numbers import u32
from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.migration import (
    ARCS,
    MigDataRead,
    MigDataReadReply,
    MigDataWrite,
    MigrationState,
    next_state,
)

ERROR, STOP, RUNNING = MigrationState.ERROR, MigrationState.STOP, MigrationState.RUNNING
STOP_COPY, RESUMING, PRE_COPY = MigrationState.STOP_COPY, MigrationState.RESUMING, MigrationState.PRE_COPY

#: The states a way must not lead through, as what they do on being entered and left is for those who want it.
SAVING = {STOP_COPY, PRE_COPY, RESUMING}

TABLE = [
    Case("read", MigDataRead(0x1000), "08100000 00100000"),
    Case("read, nothing", MigDataRead(0), "08000000 00000000"),
    Case("read reply", MigDataReadReply(b"abc"), "0b000000 03000000 616263"),
    Case("read reply, the end", MigDataReadReply(b""), "08000000 00000000"),
    Case("write", MigDataWrite(b"abcd"), "0c000000 04000000 61626364"),
    Case("write, nothing", MigDataWrite(b""), "08000000 00000000"),
]


@pytest.mark.parametrize("case", TABLE, ids=str)
class TestTable(CodecTests):
    pass


@pytest.mark.parametrize("kind", [MigDataRead, MigDataWrite])
@pytest.mark.parametrize("argsz", [0, 7, 8, 11])
def test_argsz_has_room_for_the_data(kind: Any, argsz: int) -> None:
    payload = argsz.to_bytes(4, "little") + (4).to_bytes(4, "little") + b"data"
    with pytest.raises(RemoteProtocolError, match=rf"argsz {argsz} is smaller than the fixed part of 12 bytes"):
        kind.decode(payload)


def test_a_client_may_have_more_room_than_it_asks_for() -> None:
    assert MigDataRead.decode(bytes.fromhex("00100000 04000000")) == MigDataRead(4)


def shortest(current: MigrationState, goal: MigrationState) -> MigrationState | None:
    """The first step of the shortest way over ``ARCS`` that passes through none of ``SAVING``."""
    queue = deque([(current, [])])  # type: ignore[var-annotated]
    seen = {current}
    while queue:
        state, way = queue.popleft()
        if state == goal:
            return way[0] if way else None
        if state in SAVING and way:
            continue
        for start, end in sorted(ARCS):
            if start == state and end not in seen:
                seen.add(end)
                queue.append((end, [*way, end]))
    return None


@pytest.mark.parametrize("current", MigrationState)
@pytest.mark.parametrize("goal", MigrationState)
def test_the_first_step_is_on_the_shortest_way(current: MigrationState, goal: MigrationState) -> None:
    excepted = (current, goal) == (STOP_COPY, PRE_COPY)
    assert next_state(current, goal) == (None if excepted else shortest(current, goal))


@pytest.mark.parametrize(
    ("current", "goal", "way"),
    [
        (RUNNING, STOP_COPY, [STOP, STOP_COPY]),
        (RUNNING, RESUMING, [STOP, RESUMING]),
        (PRE_COPY, STOP_COPY, [STOP_COPY]),
        (PRE_COPY, STOP, [RUNNING, STOP]),
        (PRE_COPY, RESUMING, [RUNNING, STOP, RESUMING]),
        (RESUMING, RUNNING, [STOP, RUNNING]),
        (RESUMING, PRE_COPY, [STOP, RUNNING, PRE_COPY]),
        (STOP_COPY, RUNNING, [STOP, RUNNING]),
    ],
)
def test_ways(current: MigrationState, goal: MigrationState, way: list[MigrationState]) -> None:
    taken = []
    state: MigrationState | None = current
    while state is not None and state != goal:
        state = next_state(state, goal)
        taken.append(state)
    assert taken == way


@pytest.mark.parametrize("goal", [ERROR, MigrationState.RUNNING_P2P, MigrationState.PRE_COPY_P2P])
@pytest.mark.parametrize("current", MigrationState)
def test_goals_nobody_reaches(current: MigrationState, goal: MigrationState) -> None:
    assert next_state(current, goal) is None
    assert next_state(STOP_COPY, PRE_COPY) is None
    assert next_state(ERROR, RUNNING) is None


@given(
    st.builds(MigDataRead, st.integers(0, 0xFFFF_FFF7))
    | st.builds(MigDataReadReply, st.binary(max_size=64))
    | st.builds(MigDataWrite, st.binary(max_size=64))
)
def test_round_trip(message: Any) -> None:
    assert type(message).decode(message.encode()) == message


@pytest.mark.parametrize("kind", [MigDataRead, MigDataReadReply, MigDataWrite])
@given(argsz=u32, size=u32, data=st.binary(max_size=32))
def test_any_bytes(kind: Any, argsz: int, size: int, data: bytes) -> None:
    try:
        message = kind.decode(argsz.to_bytes(4, "little") + size.to_bytes(4, "little") + data)
    except RemoteProtocolError:
        return
    assert type(message) is kind
