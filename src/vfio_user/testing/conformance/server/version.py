"""VERSION: what a server answers, what it has to accept, and what it must not."""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Callable
from typing import Any

from vfio_user.protocol.constants import Command
from vfio_user.testing.conformance.bench import GET_INFO, PROPOSAL, Bench, version_payload
from vfio_user.testing.conformance.check import DoesNotApply, Family, Risk, Unmet
from vfio_user.testing.conformance.peer import Message

__all__ = ["VERSION"]

VERSION = Family("version", "vfio-user, VFIO_USER_VERSION")

_QEMU = "practice (QEMU's client requires it)"

#: QEMU's request, byte for byte: its buffer for the reply is as long.
_QEMU_REQUEST = (
    b'\0\0\0\0{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, '
    b'"max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, '
    b'"write_multiple": true}}\0'
)


def _capabilities(bench: Bench, message: Message) -> dict[str, Any]:
    """Those of a reply."""
    payload = bench.success(message)
    if len(payload) == 4:
        return {}
    try:
        document = json.loads(payload[4:].rstrip(b"\0").decode())
    except ValueError as exc:
        raise Unmet(f"the reply's text is not JSON: {exc}") from exc
    if not isinstance(document, dict) or not isinstance(document.get("capabilities", {}), dict):
        raise Unmet(f"the reply's text is {document!r}")
    found: dict[str, Any] = document.get("capabilities", {})
    return found


def _reply(bench: Bench, payload: bytes) -> Message:
    """The answer to that VERSION, on a new connection."""
    return bench.connect().ask(Command.VERSION, payload)


# What the answer is.


def _numbers(minor: int) -> None:
    def run(bench: Bench) -> str:
        payload = bench.success(_reply(bench, version_payload(PROPOSAL, minor=minor)))
        if len(payload) < 4:
            raise Unmet(f"{len(payload)} bytes of payload")
        found = struct.unpack_from("<HH", payload)
        if found[0] != 0 or found[1] > minor:
            raise Unmet(f"{found[0]}.{found[1]}")
        return f"{found[0]}.{found[1]}"

    VERSION.add(f"answer-to[0.{minor}]", f"0.0 to 0.{minor}: no newer than was proposed", run, own_connection=True)


for _minor in (0, 1, 2, 3, 100, 0xFFFF):
    _numbers(_minor)


@VERSION.check("reply-ends-in-nul", "the JSON text ends in a NUL byte, which counts")
def _(bench: Bench) -> str:
    payload = bench.success(bench.version_reply)
    if len(payload) > 4 and not payload.endswith(b"\0"):
        raise Unmet(f"it ends in {payload[-4:]!r}")
    return "it does" if len(payload) > 4 else "no text"


@VERSION.check("reply-is-json", 'the text is JSON: {"capabilities": {...}}')
def _(bench: Bench) -> str:
    return ", ".join(_capabilities(bench, bench.version_reply)) or "no capabilities"


@VERSION.check("reply-has-one-nul", "the text has no other NUL byte than its last", advised=True)
def _(bench: Bench) -> str:
    text = bench.success(bench.version_reply)[4:]
    if b"\0" in text[:-1]:
        raise Unmet("there are more")
    return "there is none"


@VERSION.check(
    "reply-has-text",
    "the reply has a text: the rust client cannot do without",
    advised=True,
    clause="practice (rust-vmm)",
)
def _(bench: Bench) -> str:
    if len(bench.success(bench.version_reply)) <= 5:
        raise Unmet("there is none")
    return "it has"


@VERSION.check(
    "reply-fits", "no longer than QEMU's request, whose length its buffer has", clause=_QEMU, own_connection=True
)
def _(bench: Bench) -> str:
    payload = bench.success(_reply(bench, _QEMU_REQUEST))
    if len(payload) > len(_QEMU_REQUEST):
        raise Unmet(f"{len(payload)} bytes; {len(_QEMU_REQUEST)} fit")
    return f"{len(payload)} bytes"


@VERSION.check("reply-brings-no-fd", "no descriptor, unless a twin socket was proposed")
def _(bench: Bench) -> str:
    if bench.version_reply.fds:
        raise Unmet(f"{len(bench.version_reply.fds)} came")
    return "none"


def _key(key: str, expected: str, is_right: Callable[[Any], bool], *, clause: str = "") -> None:
    def run(bench: Bench) -> str:
        found = _capabilities(bench, bench.version_reply)
        if key not in found:
            raise DoesNotApply(f"the server does not say {key}")
        if not is_right(found[key]):
            raise Unmet(f"{key} is {json.dumps(found[key])}")
        return f"{key} is {json.dumps(found[key])}"

    VERSION.add(f"reply[{key}]", expected, run, clause=clause)


def _is_int(value: object) -> bool:
    return type(value) is int


_key("max_msg_fds", "an integer, 0 to 16", lambda value: _is_int(value) and 0 <= value <= 16, clause=_QEMU)
_key(
    "max_data_xfer_size",
    "an integer, 4096 to 64 MiB",
    lambda value: _is_int(value) and 4096 <= value <= 64 << 20,
    clause=_QEMU,
)
_key("max_dma_maps", "an integer, at most 65535", lambda value: _is_int(value) and 0 < value <= 65535, clause=_QEMU)
_key(
    "pgsizes",
    "an integer, no bit below 4096",
    lambda value: _is_int(value) and value > 0 and value % 4096 == 0,
    clause=_QEMU,
)
_key("write_multiple", "true or false", lambda value: type(value) is bool)


def _not_proposed(key: str, *, advised: bool = True) -> None:
    def run(bench: Bench) -> str:
        proposed = {name: value for name, value in PROPOSAL.items() if name != key}
        found = _capabilities(bench, _reply(bench, version_payload(proposed)))
        if key in found and found[key] is not False:
            raise Unmet(f"{key} is in the reply")
        return "it is not in the reply"

    VERSION.add(
        f"not-proposed[{key}]",
        f"{key} is in the reply only if it was proposed",
        run,
        own_connection=True,
        advised=advised,
    )


for _name in ("pgsizes", "max_dma_maps", "write_multiple", "migration", "twin_socket"):
    _not_proposed(_name)


@VERSION.check("twin-socket", "if it is supported, a descriptor comes, and fd_index says which", own_connection=True)
def _(bench: Bench) -> str:
    message = _reply(bench, version_payload({**PROPOSAL, "twin_socket": {"supported": True}}))
    twin = _capabilities(bench, message).get("twin_socket", {})
    if not isinstance(twin, dict):
        raise Unmet(f"twin_socket is {json.dumps(twin)}")
    if not twin.get("supported"):
        if message.fds:
            raise Unmet("it is not supported, and a descriptor came")
        raise DoesNotApply("the server has no twin socket")
    if not _is_int(twin.get("fd_index")) or not 0 <= twin["fd_index"] < len(message.fds):
        raise Unmet(f"fd_index is {json.dumps(twin.get('fd_index'))}, and {len(message.fds)} descriptors came")
    return f"fd_index {twin['fd_index']}"


@VERSION.check("twin-socket-declined", "a client that says supported: false gets none", own_connection=True)
def _(bench: Bench) -> str:
    message = _reply(bench, version_payload({**PROPOSAL, "twin_socket": {"supported": False}}))
    twin = _capabilities(bench, message).get("twin_socket", {})
    if message.fds or (isinstance(twin, dict) and twin.get("supported")):
        raise Unmet("a twin socket")
    return "none"


# What has to be accepted.


def _accepts(name: str, payload: bytes, what: str, *, advised: bool = False, clause: str = "") -> None:
    def run(bench: Bench) -> str:
        bench.negotiated(payload)
        return bench.goes_on()

    VERSION.add(f"accepts[{name}]", f"{what}: agreed on", run, own_connection=True, advised=advised, clause=clause)


_accepts(
    "no-text", bytes(4), "no JSON at all, as SPDK sends", clause="vfio-user, VFIO_USER_VERSION: the text is optional"
)
_accepts("{}", bytes(4) + b"{}\0", "an empty object")
_accepts("no-capabilities", version_payload({}), "no capabilities")
_accepts("unknown-key", version_payload({**PROPOSAL, "colour": "blue"}), "a capability nobody knows")
_accepts("unknown-top-level-key", bytes(4) + b'{"capabilities":{},"vendor":[1,2]}\0', "another key beside")
_accepts("blanks", bytes(4) + b' {\n\t"capabilities" : { } }\n\0', "a text with blanks")
_accepts("escapes", bytes(4) + b'{"capabilities":{"\\u0061\xc3\xa4":"\\ud83d\\ude00"}}\0', "text that is not ASCII")
_accepts("nested", version_payload({"x": [{"y": [[{}]]}]}), "an unknown key with a value of its own depth")
_accepts(
    "rust",
    version_payload({"max_msg_fds": 1, "max_data_xfer_size": 1048576, "migration": {"pgsize": 4096}}, minor=1),
    "what the rust client proposes",
    clause="practice (rust-vmm)",
)
_accepts(
    "libvfio-user",
    version_payload({"max_msg_fds": 32, "max_data_xfer_size": 1024}, minor=2),
    "what libvfio-user's client proposes",
    clause="practice (libvfio-user)",
)
_accepts("QEMU", _QEMU_REQUEST, "what QEMU proposes", clause="practice (QEMU)")
_accepted: Any
for _name, _accepted in (
    *(("max_msg_fds", value) for value in (0, 1, 253)),
    *(("max_data_xfer_size", value) for value in (1024, 4096, 64 << 20)),
    *(("max_dma_maps", value) for value in (1, 65535)),
    *(("pgsizes", value) for value in (4096, 0x4020_1000)),
    *(("write_multiple", value) for value in (False, True)),
):
    _accepts(
        f"{_name}-{json.dumps(_accepted)}", version_payload({_name: _accepted}), f"{_name} {json.dumps(_accepted)}"
    )
_accepts("twin-socket-unsupported", version_payload({"twin_socket": {"supported": False}}), "no twin socket")


# What has to be refused.


def _refuses(
    name: str, payload: bytes | None, why: str, *, command: int = Command.VERSION, fds: int = 0, advised: bool = False
) -> None:
    def run(bench: Bench) -> str:
        peer = bench.connect()
        number = peer.send(command, payload or b"", fds=bench.eventfds(fds) if fds else ())
        try:
            message = peer.reply_to(number)
        except Unmet as exc:
            if "closed" not in str(exc):
                raise
            return "the connection was closed"
        return bench.refused(message)

    VERSION.add(
        f"refuses[{name}]",
        f"EINVAL, or the end of the connection: {why}",
        run,
        risk=Risk.CLOSE,
        own_connection=True,
        advised=advised,
        errnos=(errno.EINVAL,),
    )


for _command in (
    Command.DEVICE_GET_INFO,
    Command.DMA_MAP,
    Command.REGION_READ,
    Command.DEVICE_SET_IRQS,
    Command.DEVICE_RESET,
):
    _refuses(
        f"{_command.name}-first",
        GET_INFO if _command != Command.DEVICE_RESET else b"",
        "VERSION comes first",
        command=_command,
    )
_refuses("unknown-command-first", bytes(16), "VERSION comes first", command=99)
_refuses("descriptors", version_payload({}), "VERSION carries no descriptors", fds=1)
for _length in range(4):
    _refuses(f"{_length}-bytes", bytes(_length), "a payload under 4 bytes")
for _major in (1, 2, 0xFFFF):
    _refuses(f"major-{_major}", version_payload({}, major=_major), "another major version")
for _name, _text, _why in (
    ("no-nul", b'{"capabilities":{}}', "the NUL byte is missing"),
    ("one-nul", b"\0", "an empty text is not JSON"),
    ("open-brace", b"{\0", "the text is not JSON"),
    ("open-quote", b'"\0', "the text is not JSON"),
    ("two-texts", b"{} {}\0", "two texts are not one"),
    ("not-utf-8", b'{"\xff\xfe":1}\0', "the text is not UTF-8"),
    ("array", b"[]\0", "the text is no object"),
    ("number", b"1\0", "the text is no object"),
    ("null", b"null\0", "the text is no object"),
    ("capabilities-array", b'{"capabilities":[]}\0', "capabilities is no object"),
    ("capabilities-string", b'{"capabilities":"x"}\0', "capabilities is no object"),
    ("capabilities-null", b'{"capabilities":null}\0', "capabilities is no object"),
    ("capabilities-number", b'{"capabilities":7}\0', "capabilities is no object"),
):
    _refuses(_name, bytes(4) + _text, _why)
#: Values no capability may have; and whether every server knows the capability, and has to refuse them.
_WRONG_VALUES: dict[str, tuple[bool, tuple[Any, ...]]] = {
    "max_msg_fds": (True, (-1, 1025, "8", 8.5, None, [])),
    "max_data_xfer_size": (True, ("4096", 1.5, None, {})),
    "max_dma_maps": (False, ("1", True, [])),
    "pgsizes": (False, ("4096", True, [])),
    "migration": (False, (True, [], "x", {"pgsize": "4096"})),
    "twin_socket": (False, (True, [], "x", {"supported": 1}, {"supported": "yes"}, {"supported": None})),
    "write_multiple": (False, (1, "true", {})),
}
for _name, (_is_known, _values) in _WRONG_VALUES.items():
    for _wrong in _values:
        _refuses(
            f"{_name}={json.dumps(_wrong)}",
            version_payload({_name: _wrong}),
            f"{_name} of the wrong type or range",
            advised=not _is_known,
        )
for _name in ("max_msg_fds", "max_data_xfer_size"):
    _refuses(f"{_name}=true", version_payload({_name: True}), "true is no number", advised=True)


@VERSION.check(
    "refused-is-closed",
    "after refusing VERSION the server hangs up",
    risk=Risk.CLOSE,
    own_connection=True,
    advised=True,
)
def _(bench: Bench) -> str:
    peer = bench.connect()
    peer.send(Command.VERSION, version_payload({}, major=1))
    if not peer.is_closed():
        raise Unmet("the connection stays open")
    return "closed"


@VERSION.check(
    "refused-and-next",
    "after a client whose VERSION was refused, the next is served",
    risk=Risk.CLOSE,
    own_connection=True,
)
def _(bench: Bench) -> str:
    bench.connect().send(Command.VERSION, version_payload({}, major=1))
    bench.negotiated()
    return bench.goes_on()


@VERSION.check("not-twice", "EINVAL: a version was agreed on already")
def _(bench: Bench) -> str:
    return bench.refuses(Command.VERSION, version_payload({}))


@VERSION.check("not-twice-goes-on", "a second VERSION changes nothing: the connection goes on", advised=True)
def _(bench: Bench) -> str:
    bench.refuses(Command.VERSION, version_payload({}), ())
    return bench.goes_on()
