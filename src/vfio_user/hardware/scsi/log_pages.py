"""Log pages: counters a unit keeps. Spec: SPC-4 7.3."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum

__all__ = ["ErrorCounter", "LogPage", "counter", "informational_exceptions", "log_page", "supported_log_pages"]

#: CONTROL BYTE of a parameter: a bounded counter, and binary data in a list.
_COUNTER, _LIST = 0x02, 0x03


class LogPage(IntEnum):
    """Pages of LOG SENSE."""

    SUPPORTED_PAGES = 0x00
    WRITE_ERRORS = 0x02
    READ_ERRORS = 0x03
    INFORMATIONAL_EXCEPTIONS = 0x2F


class ErrorCounter(IntEnum):
    """Parameters of the pages of errors. Spec: 7.3.4."""

    TOTAL = 0x0003
    BYTES_PROCESSED = 0x0005
    UNCORRECTED = 0x0006


def counter(code: int, value: int) -> bytes:
    """A parameter that counts. Spec: 7.3.2.2."""
    return struct.pack(">HBBQ", code, _COUNTER, 8, value)


def informational_exceptions() -> bytes:
    """The one parameter of the page: nothing to report, temperature unknown. Spec: 7.3.11."""
    return struct.pack(">HBBBBB", 0, _LIST, 3, 0, 0, 0xFF)


def log_page(code: int, body: bytes, *, subpage: int = 0) -> bytes:
    """A page with its header. Spec: 7.3.2.1."""
    return struct.pack(">BBH", code | (0x40 if subpage else 0), subpage, len(body)) + body


def supported_log_pages(codes: Iterable[int], *, with_subpages: bool) -> bytes:
    """The page that lists the others, and itself. Spec: 7.3.19, 7.3.20."""
    if not with_subpages:
        return log_page(LogPage.SUPPORTED_PAGES, bytes(sorted(codes)))
    pairs = sorted([(code, 0) for code in codes] + [(0, 0xFF)])
    return log_page(LogPage.SUPPORTED_PAGES, bytes(byte for pair in pairs for byte in pair), subpage=0xFF)
