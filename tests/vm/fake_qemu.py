#!/usr/bin/env python3
"""Stands in for QEMU: speaks QMP's first words, and then does what its last argument names.

The sockets are found in the arguments, as QEMU finds them; a shell on the channel runs commands on this machine.
"""

import json
import re
import signal
import socket
import subprocess
import sys
import time

behaviour = sys.argv[-1]
ends = {name: int(fd) for name, fd in re.findall(r"socket,id=(\w+),fd=(\d+)", " ".join(sys.argv))}
console, channel, qmp = (socket.socket(fileno=ends[name]) for name in ("console", "channel", "qmp"))


def answer_qmp() -> None:
    qmp.sendall(b'{"QMP": {"version": {}, "capabilities": []}}\r\n')
    if behaviour == "fail":
        print("fake: no such device", file=sys.stderr)
        sys.exit(1)
    if behaviour == "hang":
        time.sleep(60)
    assert json.loads(qmp.makefile().readline()) == {"execute": "qmp_capabilities"}
    qmp.sendall(b'{"event": "RESUME", "timestamp": {}}\r\n{"return": {}}\r\n')


def obey() -> None:
    stream = channel.makefile("rwb")
    stream.write(b"firmware noise\n<<ready 1.25 6.1.0-test>>\n")
    stream.flush()
    while words := stream.readline().split():
        script = b"".join(stream.readline() for _ in range(int(words[2])))
        if b"poweroff" in script:
            stream.write(b"\n<<exit 7>>\n")
            stream.flush()
            sys.exit(0)
        if b"crash" in script:
            console.sendall(b"[ 1.0] Kernel panic - not syncing: a crash\r\n---[ end Kernel panic ]---\r\n")
            time.sleep(60 if behaviour == "reboot" else 0.2)
            sys.exit(0)
        if b"never" in script:
            continue
        outcome = subprocess.run(
            ["sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        stream.write(outcome.stdout + b"\n<<%s %d>>\n" % (words[1], outcome.returncode))
        stream.flush()


if behaviour == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
answer_qmp()
console.sendall(b"first line\r\nsecond ")
console.sendall(b"line\r\nno end")
obey()
