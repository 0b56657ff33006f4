"""DEVICE_FEATURE and the data of migration: what goes out, and what a server may not answer."""

from __future__ import annotations

import errno
import struct

import pytest

from tests.client.scripted import Answering
from vfio_user.client.features import DeviceFeatures
from vfio_user.errors import CommandError, RemoteProtocolError
from vfio_user.protocol.constants import Command
from vfio_user.protocol.feature import Feature, FeatureFlags

GET, SET, PROBE = FeatureFlags.GET, FeatureFlags.SET, FeatureFlags.PROBE


@pytest.fixture
def features(answering: Answering) -> DeviceFeatures:
    return DeviceFeatures(answering.client().connection)


def echo(answering: Answering) -> None:
    answering.answers[Command.DEVICE_FEATURE] = lambda heard: heard.payload


def test_probing(answering: Answering, features: DeviceFeatures) -> None:
    echo(answering)
    assert features.has(Feature.MIGRATION)
    assert features.has(Feature.DMA_LOGGING_START, SET)
    assert [heard.payload.hex() for heard in answering.heard] == ["0800000001000400", "0800000006000600"]
    answering.answers[Command.DEVICE_FEATURE] = lambda _: errno.EINVAL
    assert not features.has(77)


def test_getting(answering: Answering, features: DeviceFeatures) -> None:
    answering.answers[Command.DEVICE_FEATURE] = lambda _: struct.pack("<IIQ", 16, 0x10001, 5)
    assert features.get(Feature.MIGRATION, size=8) == b"\5" + bytes(7)
    assert answering.heard[0].payload.hex() == "1000000001000100"
    # What the question needs is in it, and may be more than what comes.
    answering.answers[Command.DEVICE_FEATURE] = lambda _: struct.pack("<II", 8, 0x10008)
    assert features.get(Feature.DMA_LOGGING_REPORT, size=2, data=b"which") == b""
    assert answering.heard[1].payload == struct.pack("<II", 13, 0x10008) + b"which"


@pytest.mark.parametrize("reply", [b"", None], ids=["nothing", "its own words"])
def test_setting(answering: Answering, features: DeviceFeatures, reply: bytes | None) -> None:
    answering.answers[Command.DEVICE_FEATURE] = lambda heard: heard.payload if reply is None else reply
    features.set(Feature.MIG_DEVICE_STATE, b"12345678")
    assert answering.heard[0].payload == struct.pack("<II", 16, 0x20002) + b"12345678"


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (b"", "payload of 0 bytes is shorter than the 8"),
        (struct.pack("<IIQ", 16, 0x10002, 0), "was answered for MIG_DEVICE_STATE with flags 0x10000"),
        (struct.pack("<IIQ", 16, 0x20001, 0), "was answered for MIGRATION with flags 0x20000"),
        (struct.pack("<IIQ", 16, 0x1004D, 0), "was answered for feature 77"),
        (struct.pack("<IIQ", 16, 1, 0), "have to say get"),
        (struct.pack("<IIQ", 17, 0x10001, 0), "says argsz 17; there was room for 16"),
        (struct.pack("<IIQ", 16, 0x10001, 0) + b"!", "payload of 17 bytes; it has 16 at most"),
    ],
)
def test_replies_that_make_no_sense(answering: Answering, features: DeviceFeatures, reply: bytes, why: str) -> None:
    answering.answers[Command.DEVICE_FEATURE] = lambda _: reply
    with pytest.raises(RemoteProtocolError, match=why):
        features.get(Feature.MIGRATION, size=8)


def test_reading_data(answering: Answering, features: DeviceFeatures) -> None:
    # libvfio-user fills up to the size that was asked for.
    answering.answers[Command.MIG_DATA_READ] = lambda _: struct.pack("<II", 11, 3) + b"abc--"
    assert features.read_data(5) == b"abc"
    assert answering.heard[0].payload == struct.pack("<II", 13, 5)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (struct.pack("<I", 8), "shorter than the 8"),
        (struct.pack("<II", 8, 1), "0 bytes of data came for a size of 1"),
        (struct.pack("<II", 14, 6) + b"abcdef", "payload of 14 bytes; it has 13 at most"),
    ],
)
def test_data_that_makes_no_sense(answering: Answering, features: DeviceFeatures, reply: bytes, why: str) -> None:
    answering.answers[Command.MIG_DATA_READ] = lambda _: reply
    with pytest.raises(RemoteProtocolError, match=why):
        features.read_data(5)


def test_writing_data(answering: Answering, features: DeviceFeatures) -> None:
    features.write_data(b"abc")
    assert answering.heard[0].payload == struct.pack("<II", 11, 3) + b"abc"
    answering.answers[Command.MIG_DATA_WRITE] = lambda _: errno.ENOSPC
    with pytest.raises(CommandError, match="refused MIG_DATA_WRITE of 3 bytes"):
        features.write_data(b"abc")
