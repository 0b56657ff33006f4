"""DEVICE_FEATURE, and the data of each feature."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.codecs import Case, CodecTests
from tests.support.numbers import u16, u32, u64
from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.feature import (
    DeviceFeature,
    DirtyReport,
    DmaLoggingStart,
    Feature,
    FeatureFlags,
    MigrationFlags,
    MigrationStateData,
    MigrationSupport,
    bitmap_size,
)
from vfio_user.protocol.migration import MigrationState

GET, SET, PROBE = FeatureFlags.GET, FeatureFlags.SET, FeatureFlags.PROBE

TABLE = [
    Case("get migration", DeviceFeature(Feature.MIGRATION, GET, 16), "10000000 01000100"),
    Case("set the state", DeviceFeature(Feature.MIG_DEVICE_STATE, SET, 16), "10000000 02000200"),
    Case("probe a feature alone", DeviceFeature(Feature.DMA_LOGGING_STOP, PROBE, 8), "08000000 07000400"),
    Case(
        "probe both operations",
        DeviceFeature(Feature.MIG_DEVICE_STATE, PROBE | GET | SET, 0xFFFF_FFFF),
        "ffffffff 02000700",
    ),
    Case("an unknown feature is the receiver's to refuse", DeviceFeature(0xFFFF, GET, 0), "00000000 ffff0100"),
    Case(
        "what libvfio-user can",
        MigrationSupport(MigrationFlags.STOP_COPY | MigrationFlags.PRE_COPY),
        "0500000000000000",
    ),
    Case("a state", MigrationStateData(MigrationState.STOP_COPY), "03000000 00000000"),
    Case("a state, with a descriptor", MigrationStateData(MigrationState.ERROR, 0xFFFF_FFFF), "00000000 ffffffff"),
    Case("start, everything", DmaLoggingStart(4096), "0010000000000000 00000000 00000000"),
    Case(
        "start, two ranges",
        DmaLoggingStart(0x20_0000, ((0x1000, 0x2000), (1 << 32, 1 << 40))),
        "0000200000000000 02000000 00000000 0010000000000000 0020000000000000 0000000001000000 0000000000010000",
    ),
    Case(
        "report",
        DirtyReport(0x1_0000_0000, 0x20_0000, 4096),
        "0000000001000000 0000200000000000 0010000000000000",
    ),
]


@pytest.mark.parametrize("case", TABLE, ids=str)
class TestTable(CodecTests):
    pass


@pytest.mark.parametrize("flags", [0x1, 0x3_0001, 0x8_0001, 0x9_0001, 0x8000_0001, 0xF_0001, 0xFFFF])
def test_flags_name_one_operation(flags: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"flags {flags:#x} have to say get"):
        DeviceFeature.decode((16).to_bytes(4, "little") + flags.to_bytes(4, "little"))


@pytest.mark.parametrize(
    ("feature", "possible"),
    [
        (Feature.MIGRATION, GET),
        (Feature.MIG_DEVICE_STATE, GET | SET),
        (Feature.DMA_LOGGING_START, SET),
        (Feature.DMA_LOGGING_STOP, SET),
        (Feature.DMA_LOGGING_REPORT, GET),
    ],
)
@pytest.mark.parametrize("asked", [GET, SET, PROBE, PROBE | GET, PROBE | SET, PROBE | GET | SET])
def test_what_can_be_done_with_each_feature(feature: Feature, possible: FeatureFlags, asked: FeatureFlags) -> None:
    head = DeviceFeature(feature, asked, 16)
    if asked & ~(possible | PROBE):
        with pytest.raises(RemoteProtocolError, match=rf"{feature.name} is there to"):
            head.check_supported()
    else:
        head.check_supported()


@given(u16.filter(lambda number: number not in set(Feature)))
def test_features_there_are_not(number: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"{number} is no feature"):
        DeviceFeature(number, PROBE, 16).check_supported()


@given(u32.filter(lambda number: number > 7))
def test_states_there_are_not(number: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"{number} is no migration state"):
        MigrationStateData.decode(number.to_bytes(8, "little"))


@given(u32.filter(lambda number: number > 1))
def test_more_ranges_counted_than_listed(count: int) -> None:
    data = bytearray(DmaLoggingStart(4096, ((0, 4096),)).encode())
    data[8:12] = count.to_bytes(4, "little")
    with pytest.raises(RemoteProtocolError, match=rf"16 bytes came for {count} ranges"):
        DmaLoggingStart.decode(data)


@pytest.mark.parametrize(
    ("length", "page_size", "size"),
    [
        (0, 4096, 0),
        (1, 4096, 8),
        (4096, 4096, 8),
        (64 * 4096, 4096, 8),
        (64 * 4096 + 1, 4096, 16),
        (1 << 40, 4096, 1 << 25),
        (1 << 64, 1 << 20, 1 << 41),
        (100, 1, 16),
    ],
)
def test_bitmap_size(length: int, page_size: int, size: int) -> None:
    assert bitmap_size(length, page_size) == size


operations = st.sampled_from([GET, SET, PROBE, PROBE | GET, PROBE | SET, PROBE | GET | SET])
ranges = st.lists(st.tuples(u64, u64), max_size=5).map(tuple)


@given(
    st.builds(DeviceFeature, u16, operations, u32)
    | st.builds(MigrationSupport, u64.map(MigrationFlags))
    | st.builds(MigrationStateData, st.sampled_from(MigrationState), u32)
    | st.builds(DmaLoggingStart, u64, ranges)
    | st.builds(DirtyReport, u64, u64, u64)
)
def test_round_trip(message: Any) -> None:
    assert type(message).decode(message.encode()) == message


@pytest.mark.parametrize("kind", [DeviceFeature, MigrationSupport, MigrationStateData, DmaLoggingStart, DirtyReport])
@given(data=st.binary(max_size=64))
def test_any_bytes(kind: Any, data: bytes) -> None:
    try:
        message = kind.decode(data)
    except RemoteProtocolError:
        return
    assert type(message) is kind
