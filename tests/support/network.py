"""What of the network the machine under test has."""

from __future__ import annotations

import socket

import pytest

__all__ = ["needs_ipv6"]


def _why_no_ipv6() -> str:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as exc:
        return f"this machine has no ::1: {exc.strerror}"
    return ""


_WHY = _why_no_ipv6()

#: Marks a parameter or a test that needs IPv6 on the loopback interface.
needs_ipv6 = pytest.mark.skipif(bool(_WHY), reason=_WHY or "it has")
