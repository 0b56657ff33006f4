"""One table of (message, bytes) drives encoding and decoding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from vfio_user.errors import RemoteProtocolError


@dataclass(frozen=True)
class Case:
    """One message and its exact bytes.

    Attributes:
        name: for the test's id.
        message: what ``decode`` returns, and ``encode`` takes; its class has both.
        payload: the bytes, in hexadecimal with blanks, or as they are.
        longer: a payload with more bytes behind these means the same; otherwise it is refused.
        shorter: lengths to which the payload may be cut without being refused.
    """

    name: str
    message: Any
    payload: str | bytes
    longer: bool = True
    shorter: frozenset[int] = field(default=frozenset())

    @property
    def data(self) -> bytes:
        """The payload as bytes."""
        return self.payload if isinstance(self.payload, bytes) else bytes.fromhex(self.payload)

    def __str__(self) -> str:
        return self.name


class CodecTests:
    """The four ways every codec is looked at; subclass it under ``parametrize("case", TABLE, ids=str)``."""

    def test_encodes_to_exactly_these_bytes(self, case: Case) -> None:
        assert case.message.encode().hex(" ", 4) == case.data.hex(" ", 4)

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_decodes(self, case: Case, kind: Any) -> None:
        assert type(case.message).decode(kind(case.data)) == case.message

    def test_refuses_every_truncation(self, case: Case) -> None:
        for length in range(len(case.data)):
            if length not in case.shorter:
                with pytest.raises(RemoteProtocolError):
                    type(case.message).decode(case.data[:length])

    @pytest.mark.parametrize("extra", [b"\0", b"\xff" * 16, b"\0" * 4032])
    def test_bytes_behind_it(self, case: Case, extra: bytes) -> None:
        if case.longer:
            assert type(case.message).decode(case.data + extra) == case.message
        else:
            with pytest.raises(RemoteProtocolError):
                type(case.message).decode(case.data + extra)
