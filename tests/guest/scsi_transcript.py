"""What ``programs/scsi_commands.c`` prints, read, and compared between two units that were asked the same."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from vfio_user.hardware.scsi.codes import AdditionalSense, OperationCode, SenseKey, Status

__all__ = ["Answer", "Command", "Habit", "commands_file", "compare", "read_transcript"]


@dataclass(frozen=True)
class Command:
    """A command of the list.

    Attributes:
        name: what it is, and what is wrong with it.
        length: bytes of data there is room for, or that go to the unit.
        cdb: in hex.
        data: in hex, what goes to the unit, repeated up to the length; None for the other direction.
    """

    name: str
    length: int
    cdb: str
    data: str | None = None


class Habit(Enum):
    """In what the two differ again and again."""

    PADDING = "data is filled up with zeros to the allocation length"
    NO_POINTER = "sense data has no field pointer"
    DATA_FIRST = "data goes to the unit before it is told that the command fails"


@dataclass
class Answer:
    """What came of a command.

    Attributes:
        status: as it came.
        sense: key and additional sense code; None when there is no sense data.
        pointer: where sense data points.
        others: whatever else was said: flags, information.
        data: from the unit.
        taken: bytes the unit took, where it did not take all.
    """

    status: Status = Status.GOOD
    sense: tuple[int, int] | None = None
    pointer: str = ""
    others: list[str] = field(default_factory=list)
    data: bytes = b""
    taken: int | None = None

    @property
    def outcome(self) -> str:
        """Its end in words."""
        if self.sense is None:
            return ", ".join([self.status.name, *self.others])
        key, code = self.sense
        names = {int(each): each.name for each in AdditionalSense}
        text = f"{SenseKey(key).name}, {names.get(code, f'{code >> 8:02x}/{code & 0xFF:02x}')}"
        return ", ".join([text.replace("_", " "), *self.others])


def commands_file(commands: Sequence[Command]) -> str:
    """What the program reads."""
    fields = [[each.name, str(each.length), each.cdb, *([each.data] if each.data else [])] for each in commands]
    return "".join("\t".join(line) + "\n" for line in fields)


def read_transcript(text: str) -> dict[str, Answer]:
    """What it printed, by the commands' names."""
    answers: dict[str, Answer] = {}
    for section in text.split("# ")[1:]:
        name, *lines = section.splitlines()
        assert name not in answers, f"two commands are called {name}"
        answers[name] = answer = Answer()
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "status":
                answer.status = Status(int(rest, 16))
            elif match := re.fullmatch(r"sense (\w) (\w\w) (\w\w)", line):
                answer.sense = int(match[1], 16), int(match[2] + match[3], 16)
            elif line.startswith("field in"):
                answer.pointer = line
            elif word == "taken":
                answer.taken = int(rest)
            elif re.fullmatch(r"[0-9a-f]{4}", word):
                answer.data += bytes.fromhex(rest)
            else:
                answer.others.append(line)
    return answers


def compare(command: Command, theirs: Answer, ours: Answer) -> tuple[str, str, set[Habit]]:
    """How two answers differ: in their words, in ours, both empty when they do not, and by which habits of theirs."""
    habits: set[Habit] = set()
    if theirs.outcome != ours.outcome:
        return theirs.outcome, ours.outcome, habits
    if ours.pointer and not theirs.pointer:
        habits.add(Habit.NO_POINTER)
    elif ours.pointer != theirs.pointer:
        return theirs.pointer, ours.pointer, habits
    if theirs.taken is None and ours.taken == 0 and ours.status is not Status.GOOD:
        habits.add(Habit.DATA_FIRST)
    elif theirs.taken != ours.taken and theirs.status is ours.status:
        return f"takes {theirs.taken}", f"takes {ours.taken}", habits
    if len(theirs.data) > len(ours.data) and not any(theirs.data[len(ours.data) :]):
        habits.add(Habit.PADDING)
    mine, other = dict(_parts(command, ours.data)), dict(_parts(command, theirs.data))
    they_say: list[str] = []
    we_say: list[str] = []
    for name in sorted({*mine, *other}):
        if name not in mine or name not in other:
            (we_say if name in mine else they_say).append(name)
        else:
            for offset, length in _runs(other[name], mine[name]):
                they_say.append(_excerpt(name, other[name], offset, length))
                we_say.append(_excerpt(name, mine[name], offset, length))
    return ", ".join(they_say), ", ".join(we_say), habits


def _runs(one: bytes, other: bytes) -> Iterator[tuple[int, int]]:
    """Offset and length of what differs; zeros that one of them leaves out at its end do not."""
    length = max(len(one), len(other))
    one, other = one.ljust(length, b"\0"), other.ljust(length, b"\0")
    at = 0
    while at < length:
        end = at
        while end < length and one[end] != other[end]:
            end += 1
        if end > at:
            yield at, end - at
        at = end + 1


def _excerpt(name: str, data: bytes, offset: int, length: int) -> str:
    return f"{name} byte {offset}: {data[offset : offset + length].ljust(length, bytes(1)).hex(' ')}".lstrip()


def _parts(command: Command, data: bytes) -> Iterator[tuple[str, bytes]]:
    """What data is made of, by name: what is particular to a command comes as a whole under an empty one."""
    cdb = bytes.fromhex(command.cdb)
    match cdb[0]:
        case OperationCode.MODE_SENSE_6 if data:
            yield from _mode_parts(data[1:4], data[4:][: data[3]], data[4 + data[3] : 1 + data[0]])
        case OperationCode.MODE_SENSE_10 if data:
            length, blocks = struct.unpack_from(">H4xH", data)
            yield from _mode_parts(data[2:8], data[8:][:blocks], data[8 + blocks : 2 + length])
        case OperationCode.GET_CONFIGURATION if data:
            yield "profile", data[6:8]
            rest = data[8 : 4 + int.from_bytes(data[:4], "big")]
            while rest:
                end = 4 + rest[3]
                yield f"feature {rest[:2].hex()}", rest[:end]
                rest = rest[end:]
        case OperationCode.INQUIRY if cdb[1] & 1 and cdb[2] == 0x83 and data:
            rest = data[4 : 4 + int.from_bytes(data[2:4], "big")]
            while rest:
                end = 4 + rest[3]
                yield f"designator {rest[1] & 0xF}", rest[:end]
                rest = rest[end:]
        case _:
            yield "", data


def _mode_parts(header: bytes, blocks: bytes, pages: bytes) -> Iterator[tuple[str, bytes]]:
    yield "header", header
    yield "block descriptor", blocks
    while pages:
        end = 2 + pages[1]
        yield f"page {pages[0] & 0x3F:02x}", pages[:end]
        pages = pages[end:]
