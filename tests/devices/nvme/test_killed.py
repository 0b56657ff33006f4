"""A server that is killed between two instructions: what a completed Flush promised is on the image."""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

import pytest

from vfio_user.client.pci_function import PciFunction
from vfio_user.drivers.nvme import NvmeDriver
from vfio_user.errors import ConnectError
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.opcodes import NvmOpcode
from vfio_user.vm.process import ChildProcess

_BLOCK = 4096
_BLOCKS = 256


def _connect(socket: Path, server: ChildProcess) -> PciFunction:
    while True:
        try:
            return PciFunction.connect(str(socket))
        except ConnectError:  # it does not listen yet, or has ended
            assert server.wait(0.005) is None


@pytest.mark.parametrize("how", ["", "?direct=on", "?mapped=on"])
@pytest.mark.parametrize("doorbells", ["trapped", "mapped"])
def test_what_was_flushed_is_there(tmp_path: Path, doorbells: str, how: str) -> None:
    image, socket = tmp_path / "disk.img", tmp_path / "nvme.sock"
    image.write_bytes(bytes(_BLOCK * _BLOCKS))
    numbers = random.Random(1)
    expected = bytearray(_BLOCK * _BLOCKS)
    command = [sys.executable, "-m", "vfio_user", "serve", "nvme", "--socket-path", str(socket)]
    command += ["--set", f"image=file:{image}{how}", "--set", f"lba_size={_BLOCK}", "--set", f"doorbells={doorbells}"]
    with (tmp_path / "log").open("wb") as log:
        server = ChildProcess(command, output=log)
    try:
        with _connect(socket, server) as function:
            driver = NvmeDriver(function, vectors=0)
            queue = driver.create_queue_pair(64)
            for _ in range(64):
                block = numbers.randrange(_BLOCKS // 2)
                data = numbers.randbytes(_BLOCK)
                driver.write(queue, block, data)
                expected[block * _BLOCK : (block + 1) * _BLOCK] = data
            driver.flush(queue)
            # And while the next ones are under way, of which nothing is promised, in the other half,
            buffer = function.dma_alloc(_BLOCK)
            for block in range(_BLOCKS // 2, _BLOCKS // 2 + 32):
                queue.submit(SubmissionEntry(NvmOpcode.WRITE, nsid=1, prp1=buffer.iova, cdw10=block))
            server.signal(signal.SIGKILL)
            assert server.wait(10) == -signal.SIGKILL
    finally:
        server.close()
    half = _BLOCK * _BLOCKS // 2
    assert image.read_bytes()[:half] == expected[:half]
