"""The leak check every test runs under."""

from __future__ import annotations

import os

import pytest

from tests.support.fds import close_all, identity, memory_file, no_leaks
from vfio_user.testing.leaks import leaked_since, open_files


def test_what_is_opened_and_closed_is_no_leak() -> None:
    with no_leaks():
        close_all(os.pipe())


def test_a_leak_fails_with_its_targets() -> None:
    ends: list[int] = []
    with pytest.raises(pytest.fail.Exception, match=r"^2 file .* leaked: \d+ -> pipe:.*, \d+ -> pipe:"), no_leaks():
        ends.extend(os.pipe())
    close_all(ends)


def test_a_number_used_again_for_another_file_is_a_leak() -> None:
    first = memory_file()
    before = open_files()
    os.close(first)
    second = memory_file()
    assert second == first
    assert leaked_since(before) == [f"{second} -> /memfd:test (deleted)"]
    os.close(second)


def test_a_descriptor_keeps_its_identity_when_duplicated() -> None:
    one, other = memory_file(), memory_file()
    copy = os.dup(one)
    assert identity(copy) == identity(one) != identity(other)
    close_all([one, other, copy])
