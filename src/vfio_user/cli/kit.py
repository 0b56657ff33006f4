"""``vfio-user kit``: fetches what guests are made of, and says where it is."""

from __future__ import annotations

import argparse
import json

from vfio_user.cli.output import columns
from vfio_user.vm.architecture import ARCHITECTURES
from vfio_user.vm.guestkit import GuestKit

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``kit``."""
    parser.epilog = (
        "What this machine has is used, the rest comes from Debian into the cache:\n"
        "$VFIO_USER_CACHE, or ~/.cache/vfio-user. The second time nothing is fetched."
    )
    parser.add_argument(
        "--arch", choices=tuple(ARCHITECTURES), default="x86_64", help="the guest's architecture (default x86_64)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Provisions the kit, telling the steps on standard error."""
    kit = GuestKit.provision(arguments.arch)
    about = {
        "cache": str(kit.cache.folder),
        "qemu": str(kit.qemu.path),
        "qemu_version": str(kit.qemu.version),
        "kernel": str(kit.kernel),
        "kernel_version": kit.kernel_version,
        "busybox": str(kit.busybox),
        "modules": str(kit.modules.folder),
    }
    if arguments.json:
        print(json.dumps(about, indent=2))
    else:
        print("\n".join(columns([(name.replace("_", " "), value) for name, value in about.items()])))
    return 0
