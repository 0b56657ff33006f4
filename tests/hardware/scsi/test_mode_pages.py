from __future__ import annotations

import pytest

from vfio_user.hardware.scsi import mode_pages
from vfio_user.hardware.scsi.mode_pages import CACHING, CONTROL, CONTROL_EXTENSION, ModePage

PAGES = [value for value in vars(mode_pages).values() if isinstance(value, ModePage)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.code:02x}.{page.subcode}")
def test_a_page_says_how_long_it_is(page: ModePage) -> None:
    for values in (page.default, page.changeable):
        assert len(values) == page.length
        assert values[0] == page.code | (0x40 if page.subcode else 0)
        if page.subcode:
            assert values[1] == page.subcode
            assert int.from_bytes(values[2:4], "big") == page.length - 4
        else:
            assert values[1] == page.length - 2
    assert page.mask[: page.header_length] == bytes(page.header_length)


def test_values() -> None:
    assert CACHING.default.hex() == "081204" + "00" * 17
    assert CACHING.changeable.hex() == "081204" + "00" * 17
    assert CONTROL.default.hex() == "0a0a0210" + "00" * 8
    assert CONTROL.changeable.hex() == "0a0a040008" + "00" * 7
    assert CONTROL_EXTENSION.key == (0x0A, 1)
