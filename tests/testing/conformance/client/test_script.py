from __future__ import annotations

import pytest

from vfio_user.protocol.constants import Command
from vfio_user.testing.conformance.client import MISBEHAVIOURS, Script, ScriptError, Step
from vfio_user.testing.conformance.client.rogue import _ACTIONS


def test_lines() -> None:
    script = Script.parse(["# comment", "", "REGION_READ#3  late 1.5", "DMA_* silent", "*#2 close-at 0x7"])
    assert script.steps == [
        Step("REGION_READ", 3, "late", "1.5"),
        Step("DMA_*", None, "silent"),
        Step("*", 2, "close-at", "0x7"),
    ]


def test_commands_are_counted_by_the_name_a_line_has() -> None:
    script = Script.parse(["REGION_READ#2 close", "*#4 silent", "DMA_* twice"])
    sent = [Command.REGION_READ, Command.DMA_MAP, Command.REGION_READ, Command.DMA_UNMAP, Command.REGION_READ]
    assert [[step.action for step in script.due(command)] for command in sent] == [
        [],
        ["twice"],
        ["close"],
        ["silent", "twice"],
        [],
    ]


def test_every_misbehaviour_can_be_done() -> None:
    assert set(_ACTIONS) == set(MISBEHAVIOURS)


def test_arguments() -> None:
    assert Step.parse("VERSION error EPERM").errno == 1
    assert Step.parse("VERSION error 0").errno == 0
    assert Step.parse("VERSION patch 8:ffee").patch == (8, b"\xff\xee")
    assert Step.parse("VERSION ask DMA_WRITE").command == 12
    assert Step.parse("VERSION ask 99").command == 99
    assert Step.parse('VERSION text {"a": 1}').argument == '{"a": 1}'


@pytest.mark.parametrize(
    "line",
    [
        "VERSION explode",
        "VERSION",
        "NO_SUCH silent",
        "VERSION#0 silent",
        "VERSION#x silent",
        "VERSION silent 3",
        "VERSION late",
        "VERSION late soon",
        "VERSION split x",
        "VERSION error ENONSENSE",
        "VERSION patch 8",
        "VERSION patch 8:xyz",
        "VERSION ask NOTHING",
    ],
)
def test_what_means_nothing(line: str) -> None:
    with pytest.raises(ScriptError) as caught:
        Script.parse(["VERSION silent", line])
    assert repr(line) in str(caught.value)
