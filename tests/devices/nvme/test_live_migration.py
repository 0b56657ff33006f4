"""A controller that never rests moves between two processes: no command is lost, none is carried out twice."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.nvme.workload import IMAGE_SIZE, Host
from vfio_user.client.device import VfioUserClient
from vfio_user.client.live_migration import MigrationLimits, MigrationProgress, MigrationStep, migrate
from vfio_user.client.pci_function import PciFunction
from vfio_user.devices.nvme import DoorbellMode
from vfio_user.errors import MigrationError

PROGRAM = """\
import sys
from vfio_user import Server, run_servers
from vfio_user.devices.nvme import DoorbellMode, Nvme
from vfio_user.devices.nvme.engines import make_engine
path, image, doorbells, engine, migration = sys.argv[1:]
device = Nvme(image=image, doorbells=DoorbellMode(doorbells), threads=1)
device.engine = make_engine(device, vector=engine == "vector")
server = Server(device, path, migration=migration)
print(flush=True)
run_servers(server)
"""

WAYS = [
    (doorbells, engine, backend, "v2", True)
    for doorbells, engine, backend in itertools.product(DoorbellMode, ("vector", "scalar"), ("", "?mapped=on"))
] + [
    (DoorbellMode.TRAPPED, "scalar", "", "v1", True),
    (DoorbellMode.SHADOW, "vector", "?mapped=on", "v1", True),
    (DoorbellMode.MAPPED, "vector", "", "v1", False),
    (DoorbellMode.TRAPPED, "vector", "?mapped=on", "v2", False),
    (DoorbellMode.MAPPED, "vector", "?mapped=on", "v2", False),
]


@contextlib.contextmanager
def process(socket: Path, image: str, doorbells: DoorbellMode, engine: str, migration: str) -> Iterator[None]:
    command = [sys.executable, "-c", PROGRAM, str(socket), image, doorbells.value, engine, migration]
    with (
        socket.with_name(f"{socket.name}.log").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as server,
    ):
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"\n"
            yield
            server.terminate()
            assert server.wait(20) == 0
        finally:
            server.kill()


@pytest.mark.parametrize(
    ("doorbells", "engine", "backend", "migration", "shared"),
    WAYS,
    ids=lambda value: getattr(value, "value", None) or {True: "shared", False: "copied"}.get(value, str(value)),
)
def test_it_moves_to_and_fro(
    tmp_path: Path, doorbells: DoorbellMode, engine: str, backend: str, migration: str, shared: bool
) -> None:
    file = tmp_path / "disk.img"
    file.write_bytes(bytes(IMAGE_SIZE))
    sockets = [tmp_path / "a", tmp_path / "b"]
    with contextlib.ExitStack() as stack:
        for socket in sockets:
            stack.enter_context(process(socket, f"file:{file}{backend}", doorbells, engine, migration))
        client = stack.enter_context(VfioUserClient.connect(sockets[0], memory_size=4 << 20))
        host = Host(client, seed=1)
        if doorbells is DoorbellMode.SHADOW:
            host.driver.use_shadow_doorbells()
        crossed = 0
        for move in range(1, 5):
            host.work(200)
            destination = stack.enter_context(VfioUserClient.connect(sockets[move % 2], memory_size=4 << 20))
            if not shared:
                destination.dma_alloc(1)

            def work(progress: MigrationProgress) -> None:
                if progress.step in (MigrationStep.PREPARE, MigrationStep.PRE_COPY):
                    host.work(20)

            dirtied = [(mapping.iova, mapping.size) for mapping in client.space]
            migrate(
                client,
                destination,
                progress=work,
                pause=host.fill,
                dirtied=dirtied.copy,
                limits=MigrationLimits(downtime=1e-9, rounds=3),
            )
            if not shared:
                assert destination._memory is not None
                for buffer in host.buffers:
                    buffer._memory = destination._memory
            crossed += host.in_flight
            client.close()
            client = destination
            host.driver.moved_to(PciFunction(client))
            host.hear_an_event()
        host.work(200)
        host.finish()
        assert crossed > 4
        assert file.read_bytes() == host.contents()
        assert min(host.ended.values()) > 10


class CalledOffError(Exception):
    pass


@pytest.mark.parametrize("doorbells", DoorbellMode)
def test_the_source_runs_on_whatever_fails(tmp_path: Path, doorbells: DoorbellMode) -> None:
    file = tmp_path / "disk.img"
    file.write_bytes(bytes(IMAGE_SIZE))
    image = f"file:{file}"
    others = [one for one in DoorbellMode if one is not doorbells]
    with contextlib.ExitStack() as stack:
        stack.enter_context(process(tmp_path / "a", image, doorbells, "vector", "v2"))
        stack.enter_context(process(tmp_path / "b", image, doorbells, "vector", "v2"))
        stack.enter_context(process(tmp_path / "other doorbells", image, others[0], "vector", "v2"))
        stack.enter_context(process(tmp_path / "other image", "memory:1M", doorbells, "vector", "v2"))
        client = stack.enter_context(VfioUserClient.connect(tmp_path / "a"))
        host = Host(client, seed=2)
        if doorbells is DoorbellMode.SHADOW:
            host.driver.use_shadow_doorbells()
        for step in MigrationStep:
            if step is MigrationStep.DONE:
                continue
            destination = stack.enter_context(VfioUserClient.connect(tmp_path / "b"))

            def call_off(progress: MigrationProgress, step: MigrationStep = step) -> None:
                if progress.step is step:
                    raise CalledOffError

            with pytest.raises(CalledOffError):
                migrate(client, destination, progress=call_off, pause=host.fill)
            destination.close()
            host.work(50)
            host.hear_an_event()
        for name, why in (
            ("other doorbells", f"doorbells={doorbells.value}, and this one has doorbells={others[0].value}"),
            ("other image", "this device was made with 1048576 bytes"),
        ):
            destination = stack.enter_context(VfioUserClient.connect(tmp_path / name))
            with pytest.raises(MigrationError, match="the source runs on as before"):
                migrate(client, destination, pause=host.fill)
            log = (tmp_path / f"{name}.log").read_text()
            assert why in log
            host.work(50)
        host.finish()
        assert file.read_bytes() == host.contents()
