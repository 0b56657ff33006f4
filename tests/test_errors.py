"""The exception family."""

from __future__ import annotations

import errno
import inspect
import os
import re

import pytest

from vfio_user import errors
from vfio_user.errors import (
    Busy,
    CommandError,
    CommandTimeoutError,
    DeviceError,
    DmaAccess,
    DmaExists,
    DmaLimit,
    DmaNotMapped,
    FramingError,
    InterruptTimeoutError,
    InvalidAccess,
    LocalProtocolError,
    ProtocolError,
    ReadOnly,
    RemoteProtocolError,
    Unsupported,
    VersionError,
    VfioUserError,
    VmLaunchError,
)

FAMILY = {name: getattr(errors, name) for name in errors.__all__}


def drawn_tree() -> dict[str, tuple[str, list[str]]]:
    """What the module's docstring draws: name -> (parent, built-in bases)."""
    found: dict[str, tuple[str, list[str]]] = {}
    at_depth = ["VfioUserError"]
    for line in (errors.__doc__ or "").splitlines():
        drawn = re.match(r"    ((?:[│ ]  )*)[├└]─ (\w+)(?: \((\w+)\))?", line)
        if drawn:
            depth = len(drawn[1]) // 3 + 1
            at_depth[depth:] = [drawn[2]]
            found[drawn[2]] = at_depth[depth - 1], [drawn[3]] if drawn[3] else []
    return found


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    real = {
        name: (
            next(base.__name__ for base in class_.__mro__[1:] if base.__name__ in FAMILY),
            [base.__name__ for base in class_.__bases__ if base.__module__ == "builtins"],
        )
        for name, class_ in FAMILY.items()
        if class_ is not VfioUserError
    }
    assert drawn_tree() == real


def test_everything_is_one_family_and_public() -> None:
    classes = [name for name, value in vars(errors).items() if inspect.isclass(value) and not name.startswith("_")]
    assert sorted(classes) == sorted(errors.__all__)
    assert all(issubclass(class_, VfioUserError) for class_ in FAMILY.values())


@pytest.mark.parametrize("name", errors.__all__)
def test_everything_says_what_it_means(name: str) -> None:
    assert FAMILY[name].__doc__


def test_the_root_of_protocol_errors_is_abstract() -> None:
    with pytest.raises(TypeError, match="raise LocalProtocolError or RemoteProtocolError"):
        ProtocolError("something")


@pytest.mark.parametrize("kind", [LocalProtocolError, RemoteProtocolError, FramingError, VersionError])
def test_protocol_errors_have_an_errno_to_answer_with(kind: type[ProtocolError]) -> None:
    assert kind("text").errno_hint == errno.EINVAL
    error = kind("text", errno_hint=errno.ENOTSUP)
    assert (error.errno_hint, str(error)) == (errno.ENOTSUP, "text")


@pytest.mark.parametrize("number", [1, errno.EIO, 4095])
def test_a_device_error_carries_its_errno(number: int) -> None:
    error = DeviceError(number, "the seal is broken")
    assert error.reply_errno == error.errno == number
    assert str(error) == f"[Errno {number}] the seal is broken"


@pytest.mark.parametrize("number", [0, -1, 4096, 1 << 31])
def test_an_errno_that_cannot_be_sent(number: int) -> None:
    with pytest.raises(ValueError, match=f"errno {number} cannot be sent: an error reply carries 1 to 4095"):
        DeviceError(number)


def test_without_a_message_the_errno_speaks() -> None:
    assert DeviceError(errno.EIO).strerror == os.strerror(errno.EIO)
    assert Busy().strerror == os.strerror(errno.EBUSY)


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (InvalidAccess, errno.EINVAL),
        (ReadOnly, errno.EPERM),
        (Unsupported, errno.ENOTSUP),
        (Busy, errno.EBUSY),
        (DmaNotMapped, errno.ENOENT),
        (DmaExists, errno.EEXIST),
        (DmaAccess, errno.EACCES),
    ],
)
def test_device_errors_with_a_name(kind: type[InvalidAccess], number: int) -> None:
    error = kind("why")
    assert type(error) is kind
    assert (error.reply_errno, error.strerror) == (number, "why")
    assert isinstance(error, DeviceError)
    assert isinstance(error, OSError)


def test_every_device_error_has_its_errno_in_the_tree() -> None:
    drawn = re.findall(r"^    │  [├└]─ (\w+) +(E\w+)$", errors.__doc__ or "", flags=re.MULTILINE)
    assert len(drawn) == 7
    for name, number in drawn:
        assert FAMILY[name]().reply_errno == getattr(errno, number), name


def test_a_refused_command_says_which_and_why() -> None:
    error = CommandError(errno.EPERM, 9, "REGION_READ of 4 bytes at 0x10 of BAR0")
    assert (error.errno, error.command, error.request) == (errno.EPERM, 9, "REGION_READ of 4 bytes at 0x10 of BAR0")
    assert str(error) == (
        "[Errno 1] the server refused REGION_READ of 4 bytes at 0x10 of BAR0: Operation not permitted"
    )
    assert isinstance(error, OSError)


@pytest.mark.parametrize(
    ("sent", "number"), [(0, errno.EIO), (4095, 4095), (4096, errno.EIO), (0xFFFF_FFFF, errno.EIO)]
)
def test_a_refusal_without_an_errno_is_an_input_output_error(sent: int, number: int) -> None:
    assert CommandError(sent, 13, "DEVICE_RESET").errno == number


@pytest.mark.parametrize("kind", [CommandTimeoutError, InterruptTimeoutError])
def test_what_takes_too_long_is_a_timeout(kind: type[VfioUserError]) -> None:
    assert issubclass(kind, TimeoutError)


def test_a_limit_says_which() -> None:
    assert DmaLimit(errno.ENOSPC, "too large").reply_errno == errno.ENOSPC
    assert DmaLimit(errno.EINVAL, "too many").reply_errno == errno.EINVAL


def test_a_failed_launch_carries_what_happened() -> None:
    error = VmLaunchError("QEMU ended", command=["qemu", "-version"], exit_code=1, output="no such option")
    assert (str(error), error.command, error.exit_code, error.output) == (
        "QEMU ended",
        ["qemu", "-version"],
        1,
        "no such option",
    )
