"""Descriptors that were opened and not closed."""

from __future__ import annotations

import os

from vfio_user.testing.leaks import leaked_since, open_files


def test_what_is_opened_and_closed_does_not_count() -> None:
    before = open_files()
    fd = os.memfd_create("forgotten")
    assert leaked_since(before) == [f"{fd} -> /memfd:forgotten (deleted)"]
    os.close(fd)
    assert leaked_since(before) == []


def test_a_number_used_again_is_another_file() -> None:
    fd = os.memfd_create("first")
    before = open_files()
    os.close(fd)
    assert os.memfd_create("second") == fd
    assert leaked_since(before) == [f"{fd} -> /memfd:second (deleted)"]
    os.close(fd)


def test_a_cycle_is_no_leak() -> None:
    before = open_files()

    class Cycle:
        def __init__(self) -> None:
            self.itself = self
            self.fd = os.memfd_create("cycle")

        def __del__(self) -> None:
            os.close(self.fd)

    Cycle()
    assert leaked_since(before) == []
