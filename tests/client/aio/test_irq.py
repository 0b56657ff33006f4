"""Vectors on an event loop."""

from __future__ import annotations

import asyncio
import os

import pytest

from vfio_user.client.aio.irq import AsyncVector
from vfio_user.errors import StateError


def test_waiting() -> None:
    async def wait() -> None:
        vector = AsyncVector(3)
        assert vector.poll() == 0
        asyncio.get_running_loop().call_soon(os.eventfd_write, vector.fd, 2)
        assert await vector.wait() == 2
        os.eventfd_write(vector.fd, 1)
        assert await vector.wait() == 1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await vector.wait()
        os.eventfd_write(vector.fd, 1)
        assert await vector.wait() == 1
        vector.close()
        vector.close()
        with pytest.raises(StateError, match="vector 3 is closed: enable it again"):
            await vector.wait()

    asyncio.run(wait())


def test_one_task_waits() -> None:
    async def wait() -> None:
        vector = AsyncVector(0)
        first = asyncio.ensure_future(vector.wait())
        await asyncio.sleep(0)
        with pytest.raises(StateError, match="waited for by another task already"):
            await vector.wait()
        os.eventfd_write(vector.fd, 1)
        assert await first == 1
        vector.close()

    asyncio.run(wait())


def test_closed_while_somebody_waits() -> None:
    async def wait() -> None:
        vector = AsyncVector(0)
        waiting = asyncio.ensure_future(vector.wait())
        await asyncio.sleep(0)
        vector.close()
        # Its number may be another's by the time the task runs, whose reader is not to be taken away.
        other = AsyncVector(1)
        fired = asyncio.Event()
        asyncio.get_running_loop().add_reader(other.fd, fired.set)
        with pytest.raises(StateError, match="vector 0 was closed while it was waited for"):
            await waiting
        os.eventfd_write(other.fd, 1)
        async with asyncio.timeout(5):
            await fired.wait()
        asyncio.get_running_loop().remove_reader(other.fd)
        other.close()

    asyncio.run(wait())
