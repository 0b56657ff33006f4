from __future__ import annotations

import argparse

import pytest

from vfio_user.cli.placement import DeviceRequest, parse_device, share_slots


@pytest.mark.parametrize(
    ("text", "name", "settings", "properties"),
    [
        ("edu", "edu", {}, {}),
        ("edu,dma_mask=4G", "edu", {"dma_mask": "4G"}, {}),
        ("my.py:Nic,a=1,b=x=y", "my.py:Nic", {"a": "1", "b": "x=y"}, {}),
        ("edu,label=a,,b,c=", "edu", {"label": "a,b", "c": ""}, {}),
        ("edu@05", "edu", {}, {"addr": "05"}),
        ("edu@1f.7,a=1", "edu", {"a": "1"}, {"addr": "1f.7"}),
        ("me@home/d.py:Nic", "me@home/d.py:Nic", {}, {}),
        ("edu,qemu.addr=5.1", "edu", {}, {"addr": "5.1"}),
        ("edu,qemu.romfile=1", "edu", {}, {"romfile": "1"}),
        ("edu,qemu.romsize=0x1000,qemu.rombar=0", "edu", {}, {"romsize": 4096, "rombar": 0}),
        ("edu,qemu.x-no-posted-writes=on", "edu", {}, {"x-no-posted-writes": True}),
        ("edu,qemu.multifunction=off,qemu.other=text", "edu", {}, {"multifunction": False, "other": "text"}),
    ],
)
def test_what_can_be_said(text: str, name: str, settings: dict[str, str], properties: dict[str, object]) -> None:
    assert parse_device(text) == DeviceRequest(name, settings, properties)
    for key, value in parse_device(text).properties.items():
        assert type(value) is type(properties[key])


@pytest.mark.parametrize("text", ["edu,x", "edu,=1", "edu,"])
def test_words_that_are_no_settings(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not of the form name=value"):
        parse_device(text)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("edu,qemu.socket=x", "qemu.socket is not to be given: the device's socket is ours"),
        ("edu,qemu.driver=x", "qemu.driver is not"),
        ("edu,qemu.addr=5.8", "'5.8' is no place on a bus: it must be a slot and function, as in 05.1"),
    ],
)
def test_properties_that_cannot_be(text: str, error: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=error):
        parse_device(text)


def shares(*texts: str, others: tuple[str, ...] = ()) -> list[object]:
    return [
        request.properties.get("multifunction")
        for request in share_slots([parse_device(text) for text in texts], others)
    ]


@pytest.mark.parametrize(
    ("texts", "others", "expected"),
    [
        (("edu", "edu"), (), [None, None]),
        (("edu@5.0", "edu@6.0"), (), [None, None]),
        (("edu@5.0", "edu@05.1", "edu"), (), [True, True, None]),
        (("edu@5.0",), ("pci-testdev,addr=05.3",), [True]),
        (("edu@5.0",), ("pci-testdev",), [None]),
        (("edu@5.0",), ("pci-testdev,addr=05.3,bus=rp0",), [None]),
        (("edu@5.0,qemu.bus=rp0", "edu@5.1"), ("pci-testdev,addr=05.3,bus=rp0",), [True, None]),
        (("edu@5.0,qemu.multifunction=off", "edu@5.1"), (), [False, True]),
    ],
)
def test_functions_that_share_a_slot(texts: tuple[str, ...], others: tuple[str, ...], expected: list[object]) -> None:
    assert shares(*texts, others=others) == expected
