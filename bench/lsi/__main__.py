"""Measures the SCSI controller under Linux, next to QEMU's own lsi53c895a: ``make bench-lsi``.

One guest has both, and as a third one the floor: a server in C that does the same with next to no device. All have
files of the same kind, and run the same jobs in turns. Every figure is the best of some short runs: on a machine that
does other things too, the best run says what the code can do.
"""

from __future__ import annotations

import argparse

from bench.lsi.guest import JOBS, Bench, served


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.lsi", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs of each figure, of which the best counts")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each run")
    parser.add_argument("--only", default="", help='jobs whose name contains this, "randread 4 KiB QD1" for one')
    parser.add_argument("--image", default="{file}", help='of our disk, such as "file:{file}?mapped=on"')
    parser.add_argument("--cpu", type=int, help="a core the servers are to stay on; QEMU has all")
    parser.add_argument("--count", action="store_true", help="messages and interrupts of a command instead")
    parser.add_argument("--profile", action="store_true", help="where the server spends its time instead")
    parser.add_argument("--serve", default="", metavar="OPTIONS", help="further options of `vfio-user serve`")
    options = parser.parse_args()
    jobs = [job for job in JOBS if options.only in f"{job}"]
    own = "count" if options.count else "profile" if options.profile else None
    with Bench.started(served(options.image, own=own, options=options.serve.split()), options.cpu) as bench:
        if options.count:
            bench.count(jobs, options.seconds)
        elif options.profile:
            bench.profile(jobs, options.seconds)
        else:
            bench.compare(jobs, options.seconds, options.runs)


if __name__ == "__main__":
    main()
