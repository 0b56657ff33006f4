"""VERSION: the texts real peers send, the rules of the negotiation one row each, and hostile JSON."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.codecs import Case, CodecTests
from tests.support.numbers import u16
from vfio_user.errors import VersionError
from vfio_user.protocol.constants import HEADER_SIZE
from vfio_user.protocol.header import command_header, reply_header
from vfio_user.protocol.version import Agreement, Capabilities, VersionMessage, answer, conclude, propose

# What a server of this package offers.
OFFER = Capabilities(max_msg_fds=16, write_multiple=True)

# The requests of real peers, to the byte.
QEMU = (
    b'\0\0\0\0{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, '
    b'"max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, '
    b'"write_multiple": true}}\0'
)
LIBVFIO_USER = b'\0\0\2\0{"capabilities":{"max_msg_fds":32,"max_data_xfer_size":1024}}\0'
SPDK = b"\0\0\1\0"
RUST = b'\0\0\1\0{"capabilities":{"max_msg_fds":1,"max_data_xfer_size":1048576,"migration":{"pgsize":4096}}}\0'
LIBVFIO_USER_REPLY = (
    b'\0\0\2\0{ "capabilities": { "max_msg_fds": 8, "max_data_xfer_size": 1048576, '
    b'"migration": { "pgsize": 4096 }, "twin_socket": { "supported": true, "fd_index": 0 } } }\0'
)

# What QEMU gets back; 178 bytes of its 214.
REPLY_TO_QEMU = (
    b'\0\0\0\0{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"pgsizes":4096,"max_dma_maps":65535,'
    b'"write_multiple":true}}\0'
)


def text(json_text: str) -> bytes:
    """A payload of version 0.0 with that text."""
    return b"\0\0\0\0" + json_text.encode() + b"\0"


def proposal(**capabilities: Any) -> bytes:
    """A payload of version 0.0 with those capabilities."""
    return text(json.dumps({"capabilities": capabilities}))


def negotiate(payload: bytes, offer: Capabilities = OFFER) -> tuple[bytes, Agreement]:
    """What a server does with a request."""
    reply, agreement = answer(VersionMessage.decode(payload), offer)
    return reply.encode(), agreement


# Cut to its first 4 bytes, a payload is one without JSON.
TABLE = [
    Case("no JSON, as SPDK", VersionMessage(0, 1, None), "0000 0100", longer=False),
    Case("empty", VersionMessage(0, 0, {}), text('{"capabilities":{}}'), longer=False, shorter=frozenset([4])),
    Case(
        "libvfio-user's client",
        VersionMessage(0, 2, {"max_msg_fds": 32, "max_data_xfer_size": 1024}),
        LIBVFIO_USER,
        longer=False,
        shorter=frozenset([4]),
    ),
    Case(
        "the rust client",
        VersionMessage(0, 1, {"max_msg_fds": 1, "max_data_xfer_size": 1048576, "migration": {"pgsize": 4096}}),
        RUST,
        longer=False,
        shorter=frozenset([4]),
    ),
    Case(
        "every key of both generations",
        VersionMessage(
            1, 0xFFFF, {"write_multiple": True, "twin_socket": {"supported": False}, "pgsizes": 1 << 63, "é": None}
        ),
        b"\1\0\xff\xff"
        b'{"capabilities":{"write_multiple":true,"twin_socket":{"supported":false},"pgsizes":9223372036854775808,'
        b'"\\u00e9":null}}\0',
        longer=False,
        shorter=frozenset([4]),
    ),
]


@pytest.mark.parametrize("case", TABLE, ids=str)
class TestTable(CodecTests):
    pass


def test_requests_blanks_do_not_matter() -> None:
    message = VersionMessage.decode(QEMU)
    assert message.capabilities == {
        "pgsizes": 4096,
        "max_msg_fds": 16,
        "max_dma_maps": 65535,
        "max_data_xfer_size": 1048576,
        "migration": {"max_bitmap_size": 268435456, "pgsize": 4096},
        "write_multiple": True,
    }
    assert VersionMessage.decode(LIBVFIO_USER_REPLY).capabilities == {
        "max_msg_fds": 8,
        "max_data_xfer_size": 1048576,
        "migration": {"pgsize": 4096},
        "twin_socket": {"supported": True, "fd_index": 0},
    }


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "a payload of 0 bytes is shorter than the 4"),
        (b"\0\0\0", "a payload of 3 bytes is shorter than the 4"),
        (b'\0\0\0\0{"capabilities":{}}', "does not end in a NUL byte"),
        (b"\0\0\0\0\0", "is not JSON"),
        (text("{"), "is not JSON"),
        (text('"'), "is not JSON"),
        (text("{}\0"), "is not JSON"),
        (text('{"capabilities":{}} x'), "is not JSON"),
        (b"\0\0\0\0\xff\0", "is not JSON"),
        (b"\0\0\0\0" + '{"capabilities":{}}'.encode("utf-16-le") + b"\0", "is not JSON"),
        (text("9" * 5000), "is not JSON"),
        (text("[" * 100_000), "is not JSON"),
        (text("[]"), "is a list, not an object"),
        (text("null"), "is a NoneType, not an object"),
        (text('"text"'), "is a str, not an object"),
        (text('{"capabilities":[]}'), '"capabilities" is a list, not an object'),
        (text('{"capabilities":null}'), '"capabilities" is a NoneType, not an object'),
        (text('{"capabilities":1}'), '"capabilities" is a int, not an object'),
    ],
)
def test_malformed_payloads(payload: bytes, why: str) -> None:
    with pytest.raises(VersionError, match=why):
        VersionMessage.decode(payload)


@pytest.mark.parametrize("json_text", ["{}", '{"capabilities":{}}', '{"other":1}'])
def test_an_empty_object_is_every_default(json_text: str) -> None:
    assert Capabilities.parse(VersionMessage.decode(text(json_text)).capabilities) == Capabilities()


def test_a_silent_peer_has_every_default() -> None:
    assert Capabilities.parse(None) == Capabilities(
        max_msg_fds=1,
        max_data_xfer_size=1048576,
        max_dma_maps=65535,
        pgsizes=4096,
        write_multiple=False,
        twin_socket=False,
        migration_pgsize=None,
    )


def test_capabilities_are_read() -> None:
    found = Capabilities.parse(
        {
            "max_msg_fds": 8,
            "max_data_xfer_size": 4096,
            "max_dma_maps": 64,
            "pgsizes": 0x201000,
            "write_multiple": True,
            "twin_socket": {"supported": True, "fd_index": 0},
            "migration": {"pgsize": 65536, "max_bitmap_size": 1},
            "of_the_future": [{}],
        }
    )
    assert found == Capabilities(8, 4096, 64, 0x201000, True, True, 65536)


ACCEPTED: list[tuple[str, Any, str, Any]] = [
    # key, value, attribute, what it means
    ("max_msg_fds", 0, "max_msg_fds", 0),
    ("max_msg_fds", 1024, "max_msg_fds", 1024),
    ("max_data_xfer_size", 1, "max_data_xfer_size", 1),
    ("max_data_xfer_size", 0, "max_data_xfer_size", 1048576),
    ("max_data_xfer_size", -5, "max_data_xfer_size", 1048576),
    ("max_dma_maps", 0, "max_dma_maps", 0),
    ("pgsizes", 0, "pgsizes", 0),
    ("write_multiple", False, "write_multiple", False),
    ("twin_socket", {}, "twin_socket", False),
    ("twin_socket", {"supported": False}, "twin_socket", False),
    ("migration", {}, "migration_pgsize", 4096),
    ("migration", {"pgsize": 1}, "migration_pgsize", 1),
]


@pytest.mark.parametrize(("key", "value", "attribute", "meaning"), ACCEPTED)
def test_accepted_values(key: str, value: Any, attribute: str, meaning: Any) -> None:
    assert getattr(Capabilities.parse({key: value}), attribute) == meaning


REFUSED: list[tuple[str, Any, str]] = [
    ("max_msg_fds", -1, "max_msg_fds is -1; it must be 0 to 1024"),
    ("max_msg_fds", 1025, "max_msg_fds is 1025; it must be 0 to 1024"),
    ("max_dma_maps", -1, "max_dma_maps is -1; it must be at least 0"),
    ("pgsizes", -1, "pgsizes is -1; it must be at least 0"),
    ("write_multiple", 1, "write_multiple is 1; it must be true or false"),
    ("write_multiple", None, "write_multiple is None; it must be true or false"),
    ("twin_socket", True, "twin_socket is True; it must be an object"),
    ("twin_socket", None, "twin_socket is None; it must be an object"),
    ("twin_socket", {"supported": 1}, "twin_socket.supported is 1; it must be true or false"),
    ("migration", [], r"migration is \[\]; it must be an object"),
    ("migration", None, "migration is None; it must be an object"),
    ("migration", {"pgsize": "4096"}, "migration.pgsize is '4096'; it must be an integer"),
    ("migration", {"pgsize": 0}, "migration.pgsize is 0; it must be at least 1"),
]


@pytest.mark.parametrize("value", [True, 8.0, "8", None, [8], {}], ids=repr)
@pytest.mark.parametrize("key", ["max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes"])
def test_numbers_are_plain_integers(key: str, value: Any) -> None:
    with pytest.raises(VersionError, match=rf"{key} is .*; it must be an integer"):
        negotiate(proposal(**{key: value}))


@pytest.mark.parametrize(("key", "value", "why"), REFUSED)
def test_refused_values(key: str, value: Any, why: str) -> None:
    with pytest.raises(VersionError, match=why):
        negotiate(proposal(**{key: value}))


def test_the_text_of_an_error_stays_short() -> None:
    with pytest.raises(VersionError) as caught:
        negotiate(proposal(max_msg_fds="x" * 100_000))
    assert len(str(caught.value)) < 200


# The answer.


@pytest.mark.parametrize("major", [1, 2, 0xFFFF])
def test_only_major_version_0_exists(major: int) -> None:
    with pytest.raises(VersionError, match=rf"the client speaks version {major}\.0; only 0\.x exists"):
        negotiate(major.to_bytes(2, "little") + b"\0\0")


@pytest.mark.parametrize(("theirs", "agreed"), [(0, 0), (1, 1), (2, 2), (3, 2), (0xFFFF, 2)])
def test_the_minor_version_is_the_smaller_one(theirs: int, agreed: int) -> None:
    reply, agreement = negotiate(b"\0\0" + theirs.to_bytes(2, "little"))
    assert reply[:4] == b"\0\0" + agreed.to_bytes(2, "little")
    assert agreement.minor == agreed


def test_reply_to_qemu() -> None:
    assert len(command_header(0, 1, len(QEMU)) + QEMU) == 214
    reply, agreement = negotiate(QEMU)
    assert reply == REPLY_TO_QEMU
    # QEMU's buffer for the reply is as long as its request; one byte more, and it gives up.
    assert len(reply_header(0, 1, len(reply)) + reply) <= 214
    assert len(reply) - 4 <= 194
    assert agreement == Agreement(
        minor=0,
        client=Capabilities(16, 1048576, 65535, 4096, write_multiple=True, migration_pgsize=4096),
        server=OFFER,
    )


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        # The rust client cannot do without JSON in a reply, even those that sent none.
        pytest.param(SPDK, b'\0\0\1\0{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576}}\0', id="SPDK"),
        pytest.param(RUST, b'\0\0\1\0{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576}}\0', id="rust"),
        # One byte too long with both limits, so the one that is the default goes.
        pytest.param(LIBVFIO_USER, b'\0\0\2\0{"capabilities":{"max_msg_fds":16}}\0', id="libvfio-user"),
        pytest.param(text("{}"), b'\0\0\0\0{"capabilities":{"max_msg_fds":16}}\0', id="empty"),
    ],
)
def test_replies_to_others(request_: bytes, reply: bytes) -> None:
    assert negotiate(request_)[0] == reply


def test_a_limit_that_is_not_the_default_is_said_whatever_the_room() -> None:
    offer = Capabilities(max_data_xfer_size=4096)
    assert b'"max_data_xfer_size":4096' in negotiate(text("{}"), offer)[0]


def test_the_room_is_what_came_blanks_included() -> None:
    compact = json.dumps({"capabilities": {"max_msg_fds": 8}}, separators=(",", ":"))
    assert b"max_data_xfer_size" not in negotiate(text(compact))[0]
    assert b"max_data_xfer_size" in negotiate(text(compact + " " * 40))[0]


def test_a_request_made_here_has_the_room_of_its_encoding() -> None:
    reply, _ = answer(VersionMessage(0, 0, {}), OFFER)
    assert reply.capabilities == {"max_msg_fds": 16}
    reply, _ = answer(VersionMessage(0, 0, {"max_data_xfer_size": 1048576, "max_msg_fds": 16}), OFFER)
    assert reply.capabilities == {"max_msg_fds": 16, "max_data_xfer_size": 1048576}


@pytest.mark.parametrize(
    ("proposed", "echoed"),
    [
        ({"pgsizes": 65536}, {"pgsizes": 4096}),
        ({"max_dma_maps": 1}, {"max_dma_maps": 65535}),
        ({"write_multiple": True}, {"write_multiple": True}),
        ({"write_multiple": False}, {}),
        ({"migration": {"pgsize": 4096}}, {}),
        ({"twin_socket": {"supported": True}}, {}),
        ({"of_the_future": 1}, {}),
    ],
)
def test_only_what_the_client_named_goes_back(proposed: dict[str, Any], echoed: dict[str, Any]) -> None:
    reply, _ = answer(VersionMessage.decode(proposal(**proposed)), OFFER)
    assert reply.capabilities is not None
    limits = {"max_msg_fds", "max_data_xfer_size"}
    assert {key: value for key, value in reply.capabilities.items() if key not in limits} == echoed


@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize("server", [False, True])
def test_write_multiple_needs_both(client: bool, server: bool) -> None:
    reply, agreement = negotiate(proposal(write_multiple=client), Capabilities(write_multiple=server))
    assert (b'"write_multiple":true' in reply) == (client and server)
    assert agreement.client.write_multiple == client
    assert agreement.server.write_multiple == (client and server)


@pytest.mark.parametrize(
    ("client", "server", "agreed"),
    [(None, 4096, None), (4096, None, None), (65536, 4096, 4096), (1024, 4096, 1024), (4096, 4096, 4096)],
)
def test_of_two_migration_page_sizes_the_smaller(client: int | None, server: int | None, agreed: int | None) -> None:
    proposed = proposal() if client is None else proposal(migration={"pgsize": client})
    reply, agreement = negotiate(proposed, Capabilities(migration_pgsize=server))
    assert agreement.server.migration_pgsize == agreed
    assert (b'"migration":{"pgsize":%d}' % (agreed or 0) in reply) == (agreed is not None)


@pytest.mark.parametrize(
    ("supported", "takes", "server", "carries", "agreed"),
    [
        (True, 1, True, 1, True),
        (False, 1, True, 1, False),
        (True, 0, True, 1, False),  # the client takes no descriptor
        (True, 1, False, 1, False),
        (True, 1, True, 0, False),  # the connection carries none
    ],
)
def test_a_twin_socket_needs_both_and_a_descriptor(
    supported: bool, takes: int, server: bool, carries: int, agreed: bool
) -> None:
    offer = Capabilities(max_msg_fds=carries, twin_socket=server)
    payload, agreement = negotiate(proposal(twin_socket={"supported": supported}, max_msg_fds=takes), offer)
    assert agreement.client.twin_socket == supported
    assert agreement.server.twin_socket == agreed
    capabilities = VersionMessage.decode(payload).capabilities
    assert capabilities is not None
    assert capabilities.get("twin_socket") == ({"supported": True, "fd_index": 0} if agreed else None)


def test_nobody_who_proposes_no_twin_socket_hears_of_it() -> None:
    offer = Capabilities(max_msg_fds=16, write_multiple=True, twin_socket=True)
    for request in (QEMU, LIBVFIO_USER, RUST, SPDK):
        reply, agreement = negotiate(request, offer)
        assert b"twin" not in reply
        assert not agreement.server.twin_socket
    assert negotiate(QEMU, offer)[0] == REPLY_TO_QEMU


def test_both_ends_understand_each_other() -> None:
    reply, agreement = negotiate(QEMU)
    assert Capabilities.parse(VersionMessage.decode(reply).capabilities) == agreement.server


# Anything.

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
known_keys = st.sampled_from(
    ["max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes", "write_multiple", "twin_socket", "migration"]
)


@given(st.builds(VersionMessage, u16, u16, st.none() | st.dictionaries(known_keys | st.text(), json_values)))
def test_round_trip(message: VersionMessage) -> None:
    assert VersionMessage.decode(message.encode()) == message


@given(st.binary(max_size=60) | st.text().map(text) | json_values.map(lambda value: text(json.dumps(value))))
@example(text('{"capabilities":{"max_msg_fds":-Infinity}}'))
@example(text('{"capabilities":{"pgsizes":NaN}}'))
def test_any_bytes(payload: bytes) -> None:
    with contextlib.suppress(VersionError):
        negotiate(payload)


@given(st.dictionaries(known_keys, json_values), u16)
def test_any_proposal(proposed: dict[str, Any], minor: int) -> None:
    payload = VersionMessage(0, minor, proposed).encode()
    try:
        reply, agreement = negotiate(payload)
    except VersionError:
        return
    message = VersionMessage.decode(reply)
    assert (message.major, message.minor) == (0, agreement.minor)
    assert agreement.minor <= minor
    assert set(message.capabilities or {}) <= {*proposed, "max_msg_fds", "max_data_xfer_size"}


@pytest.mark.parametrize("key", ["max_msg_fds", "migration", "of_the_future"])
def test_any_depth(key: str) -> None:
    # Between "fits" and "too deep to be decoded" lies what can be decoded, but is too deep for something else.
    for depth in range(880, 1000):
        payload = text(f'{{"capabilities":{{"{key}":' + "[" * depth + "]" * depth + "}}")
        try:
            negotiate(payload)
        except VersionError:
            pass
        else:
            assert key == "of_the_future"


def test_the_header_is_not_part_of_the_payload() -> None:
    assert HEADER_SIZE + VersionMessage.decode(QEMU).payload_size == 214  # type: ignore[operator]


# The client's side.


def judged(payload: bytes, request: VersionMessage | None = None) -> Agreement:
    """What a client that proposed 0.0, or that, makes of a reply."""
    return conclude(request or propose(OFFER), VersionMessage.decode(payload))


def test_a_request_says_the_limits_and_what_is_unusual() -> None:
    assert propose(Capabilities()).encode() == (
        b'\0\0\0\0{"capabilities":{"max_msg_fds":1,"max_data_xfer_size":1048576}}\0'
    )
    unusual = Capabilities(16, 4096, max_dma_maps=8, pgsizes=0x20_1000, write_multiple=True, twin_socket=True)
    assert propose(unusual, minor=2).encode() == (
        b'\0\0\2\0{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":4096,"max_dma_maps":8,"pgsizes":2101248,'
        b'"write_multiple":true,"twin_socket":{"supported":true}}}\0'
    )


def test_both_halves_agree() -> None:
    request = propose(OFFER, minor=1)
    reply, theirs = answer(request, OFFER)
    ours = judged(reply.encode(), request)
    assert ours == theirs
    assert (ours.minor, ours.server.write_multiple, ours.server.max_msg_fds) == (1, True, 16)


def test_replies_of_real_servers() -> None:
    agreement = judged(LIBVFIO_USER_REPLY, propose(OFFER, minor=2))
    assert agreement.server.max_msg_fds == 8
    assert not agreement.server.twin_socket, "nobody asked for one"
    assert judged(b"\0\0\0\0").server == Capabilities()


def test_a_server_cannot_give_what_was_not_asked_for() -> None:
    request = propose(Capabilities())
    assert not judged(proposal(write_multiple=True), request).server.write_multiple
    asked = VersionMessage(0, 0, {"twin_socket": {"supported": True}})
    assert judged(proposal(twin_socket={"supported": True}), asked).server.twin_socket


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"\1\0\0\0", "answers 0.0 with 1.0; it must be 0.0 to 0.0"),
        (b"\0\0\1\0", "answers 0.0 with 0.1"),
        (proposal(max_data_xfer_size=(64 << 20) + 1), "max_data_xfer_size is 67108865; at most 67108864"),
        (proposal(max_dma_maps=65536), "max_dma_maps is 65536; at most 65535"),
        (proposal(pgsizes=0), "pgsizes are 0x0"),
        (proposal(pgsizes=0x1800), "pgsizes are 0x1800; each must be at least 4096"),
        (proposal(write_multiple=1), "write_multiple is 1"),
        (proposal(max_msg_fds=8.0), "max_msg_fds is 8.0"),
        (b"\0\0", "shorter than the 4"),
    ],
)
def test_replies_a_client_refuses(payload: bytes, why: str) -> None:
    with pytest.raises(VersionError, match=why):
        judged(payload)


@pytest.mark.parametrize(
    "capabilities", [{"max_data_xfer_size": 64 << 20}, {"max_dma_maps": 65535}, {"pgsizes": 1 << 63}]
)
def test_the_most_a_server_may_say(capabilities: dict[str, int]) -> None:
    ((name, value),) = capabilities.items()
    assert getattr(judged(proposal(**capabilities)).server, name) == value
