"""Fixtures of the client's tests."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest

from tests.client.scripted import Answering, ScriptedServer, scripted


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A server that says what it was told to."""
    with scripted() as server:
        yield server


@pytest.fixture
def answering() -> Iterator[Answering]:
    """A server that answers as it was told to."""
    server = Answering(b'{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":4096}}\0')
    yield server
    server.close()


@pytest.fixture
def forget_devices(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """For devices that offer the first migration protocol: its window is a file, which goes when its device does.

    Devices go in circles; and a refusal that is logged keeps the device, by its traceback.
    """
    caplog.set_level(logging.CRITICAL, "vfio_user")
    yield
    gc.collect()
