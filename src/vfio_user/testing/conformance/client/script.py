"""How an observed client's server is to misbehave: a line for each, saying when and what.

::

    # when             what
    REGION_READ#3      late 1.5
    DEVICE_GET_INFO    error EINVAL
    DMA_*              silent
    *#20               close-at 7

``MISBEHAVIOURS`` lists what there is. Commands are counted by the name the line has: ``REGION_READ#3`` is the third
REGION_READ, ``*#20`` the twentieth command.
"""

from __future__ import annotations

import errno
import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field

from vfio_user.errors import VfioUserError
from vfio_user.protocol.constants import Command
from vfio_user.protocol.header import command_name

__all__ = ["MISBEHAVIOURS", "Script", "ScriptError", "Step"]

#: What a server can do instead of answering rightly, and what its argument is; "" for none.
MISBEHAVIOURS: dict[str, tuple[str, str]] = {
    "late": ("SECONDS", "the reply goes later; other commands are answered meanwhile"),
    "silent": ("", "no reply"),
    "twice": ("", "the reply goes twice"),
    "split": ("BYTES", "the reply goes in two pieces, the first of so many bytes"),
    "byte-by-byte": ("", "the reply goes in pieces of one byte"),
    "oversized": ("BYTES", "the reply has so many bytes more than it should, and says so"),
    "truncated": ("BYTES", "the reply has so many bytes less than it should, and says so"),
    "promise": ("BYTES", "the header promises so many bytes more than come"),
    "wrong-id": ("", "the reply has another id"),
    "wrong-command": ("", "the reply has another command"),
    "error": ("ERRNO", "the command is refused with that errno; 0 is one, too"),
    "as-command": ("", "the reply is marked as a command"),
    "bad-type": ("", "the reply is marked as neither command nor reply"),
    "bad-size": ("BYTES", "the header says that size"),
    "patch": ("OFFSET:HEX", "the reply's payload has these bytes there"),
    "text": ("JSON", "VERSION: the reply has that text"),
    "fd": ("", "the reply brings a descriptor more"),
    "no-fd": ("", "the reply brings no descriptor"),
    "stray": ("", "a reply to nothing goes before the reply"),
    "ask": ("COMMAND", "the server asks for DMA_READ, DMA_WRITE or a number before it answers"),
    "garbage": ("BYTES", "so many bytes of no message go before the reply"),
    "close": ("", "the connection is closed instead of a reply"),
    "close-at": ("BYTES", "so many bytes of the reply go, then the connection is closed"),
}


class ScriptError(VfioUserError, ValueError):
    """A line of a script means nothing; the text says which, and what could stand there."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line.

    Attributes:
        pattern: names of commands, with ``*`` and ``?``.
        number: which of them, from 1; None for each.
        action: of ``MISBEHAVIOURS``.
        argument: its, as written.
    """

    pattern: str
    number: int | None
    action: str
    argument: str = ""

    @classmethod
    def parse(cls, line: str) -> Step:
        """Reads a line.

        Raises:
            ScriptError: it has not the form ``COMMAND[#N] ACTION [ARGUMENT]``.
        """
        when, _, rest = line.strip().partition(" ")
        action, _, argument = rest.strip().partition(" ")
        pattern, hash_, number = when.partition("#")
        argument = argument.strip()
        if action not in MISBEHAVIOURS:
            raise ScriptError(f"{line.strip()!r}: there is no {action!r}; there is {', '.join(MISBEHAVIOURS)}")
        if hash_ and not (number.isascii() and number.isdigit() and int(number)):
            raise ScriptError(f"{line.strip()!r}: {number!r} is no number from 1")
        if not any(fnmatch.fnmatchcase(command.name, pattern) for command in Command):
            raise ScriptError(f"{line.strip()!r}: no command is called {pattern!r}")
        kind = MISBEHAVIOURS[action][0]
        if bool(kind) != bool(argument):
            raise ScriptError(f"{line.strip()!r}: {action} takes {kind or 'no argument'}")
        step = cls(pattern, int(number) if hash_ else None, action, argument)
        step._check(line.strip(), kind)
        return step

    def _check(self, line: str, kind: str) -> None:
        try:
            if kind == "SECONDS":
                float(self.argument)
            elif kind == "BYTES":
                int(self.argument, 0)
            elif kind == "ERRNO":
                _ = self.errno
            elif kind == "OFFSET:HEX":
                _ = self.patch
            elif kind == "COMMAND":
                _ = self.command
        except (ValueError, KeyError) as exc:
            raise ScriptError(f"{line!r}: {self.argument!r} is no {kind}") from exc

    @property
    def errno(self) -> int:
        """The errno it names, by name or number."""
        return int(self.argument) if self.argument.isdigit() else int(vars(errno)[self.argument])

    @property
    def patch(self) -> tuple[int, bytes]:
        """Offset and bytes."""
        offset, digits = self.argument.split(":")
        return int(offset, 0), bytes.fromhex(digits)

    @property
    def command(self) -> int:
        """The command it names, by name or number."""
        return int(self.argument) if self.argument.isdigit() else int(Command[self.argument])


@dataclass(slots=True)
class Script:
    """Lines, and how far they are.

    Attributes:
        steps: what to do when.
    """

    steps: list[Step] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Script:
        """Reads lines; empty ones and those that begin with # are passed over.

        Raises:
            ScriptError: one means nothing.
        """
        return cls([Step.parse(line) for line in lines if line.strip() and not line.lstrip().startswith("#")])

    def due(self, command: int) -> list[Step]:
        """What is to be done with the reply to the command that has just come; call it once for each."""
        name = command_name(command)
        found = []
        for pattern in dict.fromkeys(step.pattern for step in self.steps):
            if fnmatch.fnmatchcase(name, pattern):
                self._counts[pattern] = self._counts.get(pattern, 0) + 1
                count = self._counts[pattern]
                found += [step for step in self.steps if step.pattern == pattern and step.number in (None, count)]
        return found
