"""DEVICE_GET_INFO."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.codecs import Case, CodecTests
from tests.support.numbers import u32
from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.constants import DeviceFlags
from vfio_user.protocol.device import DeviceInfo, DeviceInfoRequest

TABLE = [
    Case("request", DeviceInfoRequest(), "10000000 00000000 00000000 00000000"),
    Case("request of the rust client", DeviceInfoRequest(argsz=32), "20000000 00000000 00000000 00000000"),
    Case("reply", DeviceInfo(DeviceFlags.RESET | DeviceFlags.PCI, 9, 5), "10000000 03000000 09000000 05000000"),
    Case("reply, unknown flag", DeviceInfo(DeviceFlags(0x82), 10, 6), "10000000 82000000 0a000000 06000000"),
]


@pytest.mark.parametrize("case", TABLE, ids=str)
class TestTable(CodecTests):
    pass


def test_rubbish_in_a_requests_other_fields_is_ignored() -> None:
    assert DeviceInfoRequest.decode(bytes.fromhex("10000000 ffffffff ffffffff ffffffff")) == DeviceInfoRequest()


@pytest.mark.parametrize("argsz", [0, 15])
def test_a_request_has_room_for_its_reply(argsz: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"DEVICE_GET_INFO: argsz {argsz} "):
        DeviceInfoRequest.decode(DeviceInfoRequest(argsz).encode())


@given(st.builds(DeviceInfo, u32.map(DeviceFlags), u32, u32))
def test_round_trip(message: DeviceInfo) -> None:
    assert DeviceInfo.decode(message.encode()) == message


@pytest.mark.parametrize("kind", [DeviceInfo, DeviceInfoRequest])
@given(data=st.binary(max_size=40))
def test_any_bytes(kind: type[DeviceInfo | DeviceInfoRequest], data: bytes) -> None:
    try:
        message = kind.decode(data)
    except RemoteProtocolError:
        return
    assert type(message) is kind
