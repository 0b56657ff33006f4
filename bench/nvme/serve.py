"""The controller that is measured: ``python -m bench.nvme.serve SOCKET IMAGE vector|scalar trapped|shadow|mapped``."""

from __future__ import annotations

import cProfile
import pstats
import signal
import sys

from vfio_user import Server
from vfio_user.devices.nvme import DoorbellMode, Nvme
from vfio_user.devices.nvme.engines import make_engine

__all__ = ["main"]


def main(address: str, image: str, engine: str, doorbells: str, *profile: str) -> None:
    """Serves until SIGTERM; then prints the profile, if one was asked for."""
    device = Nvme(image=image, doorbells=DoorbellMode(doorbells))
    device.engine = make_engine(device, vector=engine == "vector")
    server = Server(device, address)
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    if profile:
        profiler = cProfile.Profile()
        profiler.runcall(server.run)
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(30)
    else:
        server.run()
    device.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
